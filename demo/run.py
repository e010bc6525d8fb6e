"""`make demo`: start the service, generate one prompt with IV-mixed and plain DDIM (same seed), stop the service."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from service.cli.client import VideoClient
from service.cli.main import submit_and_download
from service.process.supervisor import Supervisor
from service.settings import Settings
from worker.child import video_encoder

PROMPT = "a red circle moving right on a teal background"
SEED = 7
OUTPUT, COMPARISON = Path("demo.mp4"), Path("demo-compare.mp4")


def main() -> int:
    print(f'ivmix demo: "{PROMPT}", seed {SEED}', flush=True)
    with tempfile.TemporaryDirectory(prefix="ivmix-demo-") as folder:
        data = Path(folder)
        with Supervisor(Settings(data_dir=data, port=0)) as service:
            print(f"  queue (embedded Valkey), API and one worker are up on {service.url}", flush=True)
            client = VideoClient(service.url)
            body = {"model": "demo", "prompt": PROMPT, "seed": SEED}
            mixed = submit_and_download(client, body, OUTPUT, label="IV-mixed")
            plain_file = data / "ddim.mp4"
            plain = submit_and_download(client, {**body, "sampler": {"name": "ddim"}}, plain_file, label="plain DDIM")
        clips = [video_encoder.read_mp4(plain_file), video_encoder.read_mp4(OUTPUT)]
    video_encoder.write_mp4(
        video_encoder.side_by_side(clips, ["plain DDIM", "IV-mixed"]), COMPARISON, fps=int(mixed["fps"])
    )
    print(
        f"  {OUTPUT}: IV-mixed, {mixed['num_inference_steps']} steps, {mixed['inference_time_s']:.1f} s of inference\n"
        f"  {COMPARISON}: left: video model alone ({plain['inference_time_s']:.1f} s), right: IV-mixed, same seed;\n"
        "    the video model was trained on blurred, watermarked clips, the image model on clean pictures\n"
        "  All processes have stopped. `make serve` keeps the service running; the README shows the API.",
        flush=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
