"""`make demo`: start the service, generate one prompt with each model alone and with IV-mixed (same seed), stop it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from service.cli.client import Video, VideoClient
from service.cli.main import submit_and_download
from service.process.supervisor import Supervisor
from service.settings import Settings
from worker.compare import SAMPLERS, TITLES, Arm, write_comparison

PROMPT = "a red circle moving right on a teal background"
SEED = 7
OUTPUT, COMPARISON = Path("demo.mp4"), Path("demo-compare.mp4")
ARMS = ("ddim-image", "ddim", "iv-mixed")


def main() -> int:
    print(f'ivmix demo: "{PROMPT}", seed {SEED}', flush=True)
    with tempfile.TemporaryDirectory(prefix="ivmix-demo-") as folder:
        data = Path(folder)
        files = {name: data / f"{name}.mp4" for name in ARMS} | {"iv-mixed": OUTPUT}
        with Supervisor(Settings(data_dir=data, port=0)) as service:
            print(f"  queue (embedded Valkey), API and one worker are up on {service.url}", flush=True)
            client = VideoClient(service.url)
            body = {"model": "demo", "prompt": PROMPT, "seed": SEED}
            videos = {
                name: submit_and_download(client, {**body, "sampler": SAMPLERS[name]}, files[name], label=TITLES[name])
                for name in reversed(ARMS)
            }
        compare(videos, files)
    mixed = videos["iv-mixed"]
    print(
        f"  {OUTPUT}: IV-mixed, {mixed['num_inference_steps']} steps, {mixed['inference_time_s']:.1f} s of inference\n"
        f"  {COMPARISON}: image model alone, video model alone and IV-mixed, same seed; the video model was\n"
        "    trained on blurred, watermarked clips, the image model on clean pictures without motion\n"
        "  All processes have stopped. `make serve` keeps the service running; the README shows the API.",
        flush=True,
    )
    return 0


def compare(videos: Mapping[str, Video], files: Mapping[str, Path]) -> None:
    """Write the comparison: `files` has the mp4 of each of `videos`, which the server described."""
    from worker.child import video_encoder  # loads av and numpy

    arms = [
        Arm(name, video_encoder.read_mp4(files[name]), videos[name]["network_calls"], videos[name]["inference_time_s"])
        for name in ARMS
    ]
    write_comparison(arms, COMPARISON, fps=int(videos[ARMS[0]]["fps"]))


if __name__ == "__main__":
    sys.exit(main())
