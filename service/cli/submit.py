"""Send one request to a server and follow it to the downloaded video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from service.cli.client import Video, VideoClient
from service.cli.console import Steps


def submit_and_download(
    client: VideoClient, body: dict[str, Any], output: Path, *, label: str = "video", steps: Steps | None = None
) -> Video:
    """Create a video, show its progress and download it. Raises RequestError or VideoFailedError.

    Args:
        label: name of the step.
        steps: where it is shown; None: stderr.
    """
    steps = steps or Steps(Console(stderr=True))
    with steps.step(label, "queued") as step:

        def show(video: Video) -> None:
            step.update(video.get("phase") or video["status"], video.get("progress") or 0, 100)

        video = client.wait(client.create(body)["id"], show)
        client.download(video["id"], output)
        count = video.get("num_inference_steps")  # other servers may not return it
        step.done = f"{count} steps" if count else "completed"
    return video
