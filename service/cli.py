"""The `ivmix` command. Every command is a thin entry to something that can be called without it.

What needs torch is started by dotted name, so that `ivmix api` works in an installation that has none.
"""

from __future__ import annotations

import logging
import os
import runpy
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from service.client import RefusedError, Video, VideoClient, VideoFailedError
from service.errors import ServiceError
from service.settings import PREFIX, Settings, load_settings
from service.supervisor import Supervisor

app = typer.Typer(name="ivmix", help="Self-hosted text-to-video with the IV-Mixed Sampler.", no_args_is_help=True)

DEFAULT_URL = "http://127.0.0.1:8000"


@app.command()
def up(
    host: Annotated[str | None, typer.Option(help="Address of the API [IVMIX_HOST, else 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the API, 0 for a free one [IVMIX_PORT, else 8000].")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder for the queue and the videos [IVMIX_DATA_DIR].")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Workers per model; one per GPU.")] = 1,
) -> None:
    """Everything on this machine: queue, API and workers. Ctrl-C stops all of it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    with _explained():
        given = {"host": host, "port": port, "data_dir": data.resolve() if data else None}
        settings = _settings_with({name: value for name, value in given.items() if value is not None})
        stop = threading.Event()

        def ask_to_stop(_number: int, _frame: FrameType | None) -> None:
            stop.set()
            if not started:  # nothing to tend yet: break off the start
                raise KeyboardInterrupt

        started = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, ask_to_stop)
        try:
            with Supervisor(settings, workers) as supervisor:
                started = True
                typer.echo(f"ivmix is up on {supervisor.url}  (API description: {supervisor.url}/docs; Ctrl-C stops)")
                supervisor.watch(stop.is_set)
                typer.echo("stopping")
        except KeyboardInterrupt:
            typer.echo("stopped while starting")


@app.command()
def api() -> None:
    """The HTTP API alone (settings from IVMIX_... variables)."""
    _run_module("service.api")


@app.command()
def worker(model: Annotated[str | None, typer.Argument(help="Model id; the first one if left out.")] = None) -> None:
    """One worker: one GPU, one model."""
    _run_module("worker", *([model] if model else []))


@app.command()
def maintenance() -> None:
    """Brings lost jobs back and lets ended ones expire. Run one or more beside the workers; one of them leads."""
    _run_module("service.maintenance")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def generate(context: typer.Context) -> None:
    """A video without any server: the sampler as a library. `ivmix generate --help` shows its options."""
    _run_module("worker.generate", *context.args)


@app.command()
def submit(
    prompt: str,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the mp4.")] = Path("video.mp4"),
    url: Annotated[str, typer.Option(help="The server.", envvar="IVMIX_URL")] = DEFAULT_URL,
    model: Annotated[str | None, typer.Option(help="Model id.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random if left out.")] = None,
    steps: Annotated[int | None, typer.Option(help="num_inference_steps.")] = None,
    sampler: Annotated[str | None, typer.Option(help="iv-mixed or ddim.")] = None,
) -> None:
    """Send a prompt to a running server, wait, and download the video."""
    given = {
        "model": model,
        "seed": seed,
        "num_inference_steps": steps,
        "sampler": {"name": sampler} if sampler else None,
    }
    body = {"prompt": prompt, **{name: value for name, value in given.items() if value is not None}}
    with _explained():
        video = submit_and_wait(VideoClient(url), body, output)
        typer.echo(f"{output}: seed {video['seed']}, {video['inference_time_s']:.1f} s of work")


def submit_and_wait(client: VideoClient, body: dict[str, Any], output: Path, label: str = "") -> Video:
    """One job from request to file, with a progress bar. Raises RefusedError or VideoFailedError."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label or "queued", total=100)

        def show(video: Video) -> None:
            phase = video.get("phase") or video["status"]
            bar.update(task, completed=video["progress"], description=f"{label} {phase}".strip())

        video = client.wait(client.create(body)["id"], show)
    client.download(video["id"], output)
    return video


def _settings_with(changes: dict[str, Any]) -> Settings:
    """Command-line options win over the environment, and go through the same checks."""
    for name, value in changes.items():
        os.environ[PREFIX + name.upper()] = str(value)
    return load_settings()


def _run_module(name: str, *arguments: str) -> None:
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


@contextmanager
def _explained() -> Generator[None]:
    """What the user can mend is said in one sentence; everything else keeps its traceback."""
    try:
        yield
    except (ServiceError, RefusedError, VideoFailedError) as e:
        typer.echo(f"ivmix: {e}", err=True)
        raise typer.Exit(1) from e


def main() -> None:
    app()


if __name__ == "__main__":
    main()
