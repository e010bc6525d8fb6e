"""`make demo`: start the service, generate one prompt with both models and with each alone, stop the service."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from service.cli.client import Video, VideoClient
from service.cli.console import Steps
from service.cli.errors import user_errors
from service.cli.follow import follow
from service.cli.up import log_to_file
from service.process.supervisor import Supervisor
from service.settings import Settings
from worker.compare import SAMPLERS, TITLES, ComparedClip, write_comparison

PROMPT = "a red circle moving right on a teal background"
SEED = 7
OUTPUT, COMPARISON = Path("demo.mp4"), Path("demo-compare.mp4")
LOG = Path(".demo", "service.log").absolute()
ARMS = ("ddim-image", "ddim", "iv-mixed")


def main() -> int:
    steps = Steps()
    steps.say(f'ivmix demo: "{PROMPT}", seed {SEED}')
    with tempfile.TemporaryDirectory(prefix="ivmix-demo-") as folder, user_errors():
        files = {name: Path(folder, f"{name}.mp4") for name in ARMS} | {"iv-mixed": OUTPUT}
        try:
            videos = generate(steps, Path(folder), files)
        except Exception:
            steps.say(f"The demo failed; the log of the service is in {LOG}")
            raise
        with steps.step("comparison", str(COMPARISON)):
            compare(videos, files)
    mixed = videos["iv-mixed"]
    steps.say(
        f"{OUTPUT}: IV-mixed, {mixed['num_inference_steps']} steps, {mixed['inference_time_s']:.1f} s of inference\n"
        f"{COMPARISON}: image model alone, video model alone and IV-mixed, same seed; the video model was\n"
        "  trained on blurred, watermarked clips, the image model on clean pictures without motion\n"
        "All processes have stopped. `make serve` keeps the service running; the README shows the API."
    )
    return 0


def generate(steps: Steps, data: Path, files: Mapping[str, Path]) -> dict[str, Video]:
    """Start the service, and write the mp4 of each arm. Returns the server's descriptions."""
    settings = Settings(data_dir=data, port=0, log_format="text")
    LOG.parent.mkdir(exist_ok=True)
    log_file = log_to_file(settings, LOG, steps.console)
    with ExitStack() as stack:
        with steps.step("service", "starting queue and API") as step:
            service = stack.enter_context(Supervisor(settings, log_file=log_file))
            step.done = f"queue (embedded Valkey) and API are up on {service.url}"
        with steps.step("models", "loading the demo models") as step:
            service.wait_for_workers()
            step.done = f"a worker is ready: demo on {service.devices['demo'][0]}"
        videos: dict[str, Video] = {}
        with VideoClient(service.url) as client:
            for name in reversed(ARMS):
                body = {"model": "demo", "prompt": PROMPT, "seed": SEED, "sampler": SAMPLERS[name]}
                video_id = client.create(body)["id"]
                videos[name] = follow(client, video_id, files[name], label=TITLES[name], steps=steps)
        return videos


def compare(videos: Mapping[str, Video], files: Mapping[str, Path]) -> None:
    """Write the comparison: `files` has the mp4 of each of `videos`, which the server described."""
    from worker.child import mp4  # loads av and numpy

    arms = [
        ComparedClip(name, mp4.read_mp4(files[name]), videos[name]["network_calls"], videos[name]["inference_time_s"])
        for name in ARMS
    ]
    write_comparison(arms, COMPARISON, fps=int(videos[ARMS[0]]["fps"]))


if __name__ == "__main__":
    sys.exit(main())
