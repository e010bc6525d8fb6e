"""The commands of `ivmix`.

Modules that need torch are run by name, so that `ivmix api` works in an installation without torch.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from service.catalog.registry import ModelRegistry
from service.cli.client import Video, VideoClient
from service.cli.errors import user_errors
from service.cli.keys import keys
from service.environment import refuse_unknown_variables
from service.log_config import configure_logging
from service.maintenance.recovery import Finding, Recovery
from service.process.data_folder import keep_private, prepare_folder
from service.process.embedded_valkey import EmbeddedValkey
from service.process.standard_streams import open_closed_streams
from service.process.supervisor import Supervisor
from service.redis_connection.wait import require_redis
from service.settings import PREFIX, Settings, load_settings
from service.wiring import open_services

app = typer.Typer(name="ivmix", help="Self-hosted text-to-video with the IV-Mixed Sampler.", no_args_is_help=True)
app.add_typer(keys, name="keys")

DEFAULT_URL = "http://127.0.0.1:8000"
AUTH_NOTICES = {
    "off": "authentication is off: everyone who can reach this address can use it",
    "keys": "clients need an API key: `ivmix keys create --name NAME` creates one",
}


@app.callback()
def check_variables() -> None:
    refuse_unknown_variables(os.environ, Settings.model_fields)


@app.command()
def up(
    host: Annotated[str | None, typer.Option(help="Address of the API [IVMIX_HOST, default 127.0.0.1].")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the API; 0: any free port [IVMIX_PORT, default 8000].")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder for the queue and the videos [IVMIX_DATA_DIR].")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Workers per model: one per GPU.")] = 1,
) -> None:
    """Run everything on this machine: queue, API, webhooks and workers. Ctrl-C stops all of it."""
    given = {"host": host, "port": port, "data_dir": os.path.abspath(data) if data else None}
    settings = _settings_with({name: value for name, value in given.items() if value is not None})
    configure_logging(settings.log_format)
    _prepare_data(settings)
    stop = threading.Event()

    def ask_to_stop(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        if not started:  # interrupt the start
            raise KeyboardInterrupt

    started = False
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask_to_stop)
    try:
        with Supervisor(settings, workers) as supervisor:
            started = True
            typer.echo(f"ivmix is up on {supervisor.url}  (API documentation: {supervisor.url}/docs; Ctrl-C stops)")
            typer.echo(AUTH_NOTICES[supervisor.settings.auth])
            supervisor.run_until(stop.is_set)
            typer.echo("stopping")
    except KeyboardInterrupt:
        typer.echo("stopped while starting")


@app.command()
def api() -> None:
    """Run only the HTTP API. Settings come from IVMIX_ variables."""
    _run_module("service.api")


@app.command()
def webhooks() -> None:
    """Run a webhook dispatcher. One is enough; several share the work."""
    _run_module("service.webhook_dispatcher")


@app.command()
def worker(model: Annotated[str | None, typer.Argument(help="Model id; default: the first model.")] = None) -> None:
    """Run a worker for one GPU and one model."""
    _run_module("worker", *([model] if model else []))


@app.command()
def maintenance() -> None:
    """Requeue lost jobs and delete expired ones. Run one or more; one of them is the leader."""
    _run_module("service.maintenance")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def generate(context: typer.Context) -> None:
    """Generate a video without a server, in this process. `ivmix generate --help` lists its options."""
    _run_module("worker.generate", *context.args)


models_app = typer.Typer(help="List models; download and verify weights.", no_args_is_help=True)
app.add_typer(models_app, name="models")


@models_app.command("list")
def list_models() -> None:
    """List all models of the registry, and whether their weights are on this machine."""
    registry = ModelRegistry.of(load_settings())
    table = Table("model", "family", "weights here", "offered", "licence of the weights", box=None, pad_edge=False)
    for name, entry in registry.known.items():
        here, offered = ("no" if entry.missing else "yes"), ("yes" if name in registry.ids() else "no")
        table.add_row(name, entry.family, here, offered, entry.licence)
    Console().print(table)


@models_app.command()
def fetch(name: str) -> None:
    """Download a model's weights from a Hugging Face hub: pinned, verified, safetensors only. Resumes downloads."""
    _run_module("worker.fetch", name)


@models_app.command()
def verify(name: str) -> None:
    """Verify a model on this machine: SHA-256 of every file, name and shape of every weight. Needs no GPU."""
    _run_module("worker.verify", name)


@app.command()
def submit(
    prompt: str,
    output: Annotated[Path, typer.Option("--output", "-o", help="MP4 file to write.")] = Path("video.mp4"),
    url: Annotated[str, typer.Option(help="URL of the server.", envvar="IVMIX_URL")] = DEFAULT_URL,
    api_key: Annotated[
        str | None, typer.Option(help="API key, if required.", envvar="IVMIX_API_KEY", show_default=False)
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model id.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: random.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of inference steps.")] = None,
    sampler: Annotated[str | None, typer.Option(help="iv-mixed or ddim.")] = None,
) -> None:
    """Send a prompt to a running server, wait for the video and download it."""
    given = {
        "model": model,
        "seed": seed,
        "num_inference_steps": steps,
        "sampler": {"name": sampler} if sampler else None,
    }
    body = {"prompt": prompt, **{name: value for name, value in given.items() if value is not None}}
    video = submit_and_download(VideoClient(url, api_key=api_key), body, output)
    # Other servers may not return these.
    facts = {"seed": video.get("seed"), "seconds of inference": video.get("inference_time_s")}
    typer.echo(", ".join([str(output), *(f"{name} {value}" for name, value in facts.items() if value is not None)]))


@app.command()
def recover(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report without writing anything.")] = False,
) -> None:
    """Rebuild the records of stored videos after a loss of Redis."""
    with ExitStack() as stack:
        settings = load_settings()
        _prepare_data(settings)
        if settings.redis_url is None:  # of `ivmix up`, which must not be running
            url = stack.enter_context(EmbeddedValkey(settings.data_dir, is_temporary=True))
            settings = settings.model_copy(update={"redis_url": url})
        else:
            require_redis(settings.redis_url)
        services = stack.enter_context(closing(open_services(settings)))
        services.storage.check()
        recovery = Recovery(services.store, services.storage, settings.retention_seconds, dry_run)
        counts = dict.fromkeys(Finding, 0)
        for job_id, finding in recovery.run():
            counts[finding] += 1
            typer.echo(f"{finding} {job_id}")
        summary = ", ".join(f"{count} {finding}" for finding, count in counts.items())
        typer.echo(f"{sum(counts.values())} videos in the storage: {summary}{' (dry run)' if dry_run else ''}")


def submit_and_download(client: VideoClient, body: dict[str, Any], output: Path, label: str = "") -> Video:
    """Create a video, show its progress and download it. Raises RequestError or VideoFailedError."""
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
            bar.update(task, completed=video.get("progress") or 0, description=f"{label} {phase}".strip())

        video = client.wait(client.create(body)["id"], show)
    client.download(video["id"], output)
    return video


def _settings_with(changes: dict[str, Any]) -> Settings:
    """Command-line options override the environment and are validated in the same way."""
    for name, value in changes.items():
        os.environ[PREFIX + name.upper()] = str(value)
    return load_settings()


def _run_module(name: str, *arguments: str) -> None:
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _prepare_data(settings: Settings) -> None:
    if settings.redis_url is None or settings.storage == "file":
        prepare_folder(settings.data_dir, "IVMIX_DATA_DIR")
        keep_private(settings.data_dir)


def main() -> None:
    open_closed_streams()
    with user_errors():
        app()
