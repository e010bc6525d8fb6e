"""`make demo`: start the service, generate one prompt with IV-mixed and plain DDIM (same seed), stop the service."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from service.cli.client import Video, VideoClient
from service.cli.console import Steps
from service.cli.errors import user_errors
from service.cli.submit import submit_and_download
from service.cli.up import log_to_file
from service.process.supervisor import Supervisor
from service.settings import Settings

PROMPT = "a red circle moving right on a teal background"
SEED = 7
OUTPUT, COMPARISON = Path("demo.mp4"), Path("demo-compare.mp4")
LOG = Path(".demo", "service.log").absolute()


def main() -> int:
    steps = Steps()
    steps.say(f'ivmix demo: "{PROMPT}", seed {SEED}')
    with tempfile.TemporaryDirectory(prefix="ivmix-demo-") as folder, user_errors():
        try:
            mixed, plain = _generate(steps, Path(folder))
        except Exception:
            steps.say(f"The demo failed; the log of the service is in {LOG}")
            raise
        with steps.step("comparison", f"{COMPARISON}"):
            _write_comparison(Path(folder, "ddim.mp4"), fps=int(mixed["fps"]))
    steps.say(
        f"{OUTPUT}: IV-mixed, {mixed['num_inference_steps']} steps, {mixed['inference_time_s']:.1f} s of inference\n"
        f"{COMPARISON}: left: video model alone ({plain['inference_time_s']:.1f} s), right: IV-mixed, same seed;\n"
        "  the video model was trained on blurred, watermarked clips, the image model on clean pictures\n"
        "All processes have stopped. `make serve` keeps the service running; the README shows the API."
    )
    return 0


def _generate(steps: Steps, data: Path) -> tuple[Video, Video]:
    """Videos with IV-mixed and with plain DDIM."""
    settings = Settings(data_dir=data, port=0, log_format="text")
    log_file = log_to_file(settings, LOG, steps.console)
    with ExitStack() as stack:
        with steps.step("service", "starting queue and API") as step:
            service = stack.enter_context(Supervisor(settings, log_file=log_file))
            step.done = f"queue (embedded Valkey) and API are up on {service.url}"
        with steps.step("models", "loading the demo models") as step:
            service.wait_for_workers()
            step.done = f"a worker is ready: demo on {service.devices['demo'][0]}"
        client = VideoClient(service.url)
        body: dict[str, Any] = {"model": "demo", "prompt": PROMPT, "seed": SEED}
        mixed = submit_and_download(client, body, OUTPUT, label="IV-mixed", steps=steps)
        body["sampler"] = {"name": "ddim"}
        plain = submit_and_download(client, body, data / "ddim.mp4", label="plain DDIM", steps=steps)
    return mixed, plain


def _write_comparison(plain: Path, *, fps: int) -> None:
    from worker.child import video_encoder  # loads av and numpy

    clips = [video_encoder.read_mp4(plain), video_encoder.read_mp4(OUTPUT)]
    video_encoder.write_mp4(video_encoder.side_by_side(clips, ["plain DDIM", "IV-mixed"]), COMPARISON, fps=fps)


if __name__ == "__main__":
    sys.exit(main())
