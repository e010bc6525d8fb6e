"""Follow a video on a server to its end and download it."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console

from service.cli import more_settings
from service.cli.client import RequestError, Video, VideoClient
from service.cli.console import Steps
from service.setting_types import expand_home

INTERRUPTED = 130  # exit status of a shell's command that Ctrl-C ended


def follow(
    client: VideoClient, video_id: str, output: Path | None, *, label: str = "video", steps: Steps | None = None
) -> Video:
    """Show a video's progress until it is completed; then download it, if `output` is given.

    Args:
        label: name of the step.
        steps: where it is shown; None: stderr.

    Raises:
        RequestError: also if `output` cannot be written, before the wait.
        VideoFailedError: the job failed.
    """
    output = check_output(output) if output else None
    steps = steps or Steps(Console(stderr=True))
    with _offer_to_cancel(client, video_id, output), steps.step(label, "queued") as step:

        def show(video: Video) -> None:
            step.update(video.get("phase") or video["status"], video.get("progress") or 0, 100)

        video = client.wait(video_id, show)
        if output:
            client.download(video_id, output)
        count = video.get("num_inference_steps")  # other servers may not return it
        note = more_settings.note(video.get("approximations") or (), is_experimental=bool(video.get("experimental")))
        step.done = f"{count} steps{note}" if count else "completed"
    return video


def check_output(output: Path) -> Path:
    """Raises RequestError if a file cannot be written there: after minutes of waiting it would be too late."""
    try:
        output = expand_home(output)
    except ValueError as e:
        raise RequestError(f"--output {e}") from e
    folder = output.parent
    problem = None
    if output.is_dir():
        problem = "it is a folder; name a file in it"
    elif not folder.is_dir():
        problem = f"there is no folder {folder}; create it first"
    elif not os.access(folder, os.W_OK | os.X_OK):
        problem = f"folder {folder} is not writable; choose another"
    if problem:
        raise RequestError(f"--output {output}: {problem}")
    return output


@contextmanager
def _offer_to_cancel(client: VideoClient, video_id: str, output: Path | None) -> Generator[None]:
    """Ctrl-C stops the waiting; whether the job stops too is the user's choice."""
    try:
        yield
    except KeyboardInterrupt:
        option = f" -o {output}" if output else ""
        typer.echo(f"\n{video_id} goes on; `ivmix wait {video_id}{option}` follows it again.", err=True)
        if sys.stdin.isatty() and typer.confirm("Cancel it?", err=True):
            typer.echo(f"{video_id}: {state_of(client.cancel(video_id))}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def state_of(video: Video) -> str:
    """For people: a cancelled video's status is `failed`, as OpenAI's clients need it."""
    if video.get("cancelled_at"):
        return "cancelled"
    is_running = video["status"] == "in_progress"
    return f"{video['status']} {video.get('progress') or 0} %" if is_running else str(video["status"])
