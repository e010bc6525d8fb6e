"""The commands of `ivmix`.

Each command imports what it needs when it runs: `ivmix --help` answers at once. Modules that need torch are run by
name, so that `ivmix api` works in an installation without torch.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import service
from service.cli.errors import user_errors
from service.cli.keys import keys
from service.cli.operating import operating
from service.cli.videos import videos
from service.process.standard_streams import open_closed_streams

if TYPE_CHECKING:
    from service.settings import Settings

app = typer.Typer(name="ivmix", help="Self-hosted text-to-video with the IV-Mixed Sampler.", no_args_is_help=True)
app.add_typer(videos)
app.add_typer(operating)
app.add_typer(keys, name="keys")


def print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"ivmix {service.__version__}")
        raise typer.Exit


@app.callback()
def check_variables(
    _version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    from service.environment import refuse_unknown_variables
    from service.settings import Settings

    refuse_unknown_variables(os.environ, Settings.model_fields)


@app.command("up")
def up_command(
    host: Annotated[str | None, typer.Option(help="Address of the API [IVMIX_HOST, default 127.0.0.1].")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the API; 0: any free port [IVMIX_PORT, default 8000].")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder for the queue and the videos [IVMIX_DATA_DIR].")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Workers per model: one per GPU.")] = 1,
    logs: Annotated[
        bool, typer.Option("--logs", help="In a terminal: show log lines, instead of writing them to a file.")
    ] = False,
) -> None:
    """Run everything on this machine: queue, API, webhooks and workers. Ctrl-C stops all of it."""
    from service.cli import up

    given = {"host": host, "port": port, "data_dir": _absolute(data) if data else None}
    settings = _settings_with({name: value for name, value in given.items() if value is not None})
    up.run(settings, workers, with_logs=logs)


@app.command()
def api() -> None:
    """Run only the HTTP API. Settings come from IVMIX_ variables."""
    _run_module("service.api")


@app.command()
def webhooks() -> None:
    """Run a webhook dispatcher. One is enough; several share the work."""
    _run_module("service.webhook_dispatcher")


@app.command()
def worker(
    model: Annotated[str | None, typer.Argument(help="Model id; default: the first model.")] = None,
    gpus: Annotated[int, typer.Option(help="GPUs that compute each video together: 1, 2 or 4.")] = 1,
    cpu_processes: Annotated[
        int, typer.Option(help="Instead of GPUs: processes of this machine's CPU, to try a worker with several.")
    ] = 1,
) -> None:
    """Run a worker for one model, on one GPU or several."""
    options = ["--gpus", str(gpus), "--cpu-processes", str(cpu_processes)]
    _run_module("worker", *([model] if model else []), *options)


@app.command()
def maintenance() -> None:
    """Requeue lost jobs and delete expired ones. Run one or more; one of them is the leader."""
    _run_module("service.maintenance")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def generate(context: typer.Context) -> None:
    """Generate a video without a server, in this process. `ivmix generate --help` lists its options."""
    _run_module("worker.generate", *context.args)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(context: typer.Context) -> None:
    """Run the paper's benchmarks and measure distances. `ivmix bench --help` lists the commands."""
    from importlib.util import find_spec

    from service.errors import ConfigurationError

    if find_spec("benchmarks") is None or find_spec("benchmarks.paper") is None:
        raise ConfigurationError("the installed package has no benchmarks; run this command from a clone with `make`")
    _run_module("benchmarks.paper", *context.args)


models_app = typer.Typer(help="List, add, download and verify models.", no_args_is_help=True)
app.add_typer(models_app, name="models")


@models_app.command("list")
def list_models() -> None:
    """List all models of the registry, and whether their weights are on this machine."""
    from rich.console import Console
    from rich.table import Table

    from service.catalog.footprint import default_need
    from service.catalog.registry import ModelRegistry
    from service.settings import load_settings

    registry = ModelRegistry.of(load_settings())
    columns = ("model", "family", "here", "offered", "LoRAs", "GPU memory", "licence")
    table = Table(*columns, box=None, pad_edge=False)
    for name, entry in registry.known.items():
        here, offered = ("no" if entry.missing else "yes"), ("yes" if name in registry.ids() else "no")
        loras = ", ".join(lora.name for lora in entry.selectable_loras) or "-"
        need = default_need(entry)
        memory = "-" if need is None else f"{need / 1e9:.1f} GB" if need >= 5e7 else f"{need / 1e6:.1f} MB"
        table.add_row(name, entry.family, here, offered, loras, memory, entry.licence)
    Console().print(table)


@models_app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def add(context: typer.Context) -> None:
    """Add a model from a folder, a file or a hub repository. `ivmix models add --help` lists the options."""
    _run_module("worker.add", *context.args)


@models_app.command()
def remove(name: str, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Delete a model that `add` registered, with its converted and fetched files."""
    _run_module("worker.remove", name, *(["--yes"] if yes else []))


@models_app.command()
def fetch(name: str) -> None:
    """Download a model's weights from a Hugging Face hub: pinned, verified, safetensors only. Resumes downloads."""
    _run_module("worker.fetch", name)


@models_app.command()
def verify(name: str) -> None:
    """Verify a model on this machine: SHA-256 of every file, name and shape of every weight. Needs no GPU."""
    _run_module("worker.verify", name)


@models_app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def tune(context: typer.Context) -> None:
    """Measure how a model runs fastest on this machine. `ivmix models tune --help` lists the options."""
    _run_module("worker.tune", *context.args)


@app.command()
def recover(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report without writing anything.")] = False,
    delete_lost: Annotated[
        bool, typer.Option("--delete-lost", help="Delete references and checkpoints of jobs that are lost.")
    ] = False,
) -> None:
    """Rebuild the records of stored videos after a loss of Redis."""
    from service.cli.recover import run

    run(is_dry=dry_run, may_delete=delete_lost)


def _settings_with(changes: dict[str, Any]) -> Settings:
    """Command-line options override the environment and are validated in the same way."""
    from service.settings import PREFIX, load_settings

    for name, value in changes.items():
        os.environ[PREFIX + name.upper()] = str(value)
    return load_settings()


def _absolute(path: Path) -> str:
    """`~` stays for the settings to expand, or to refuse."""
    return str(path) if path.parts[:1] and path.parts[0].startswith("~") else os.path.abspath(path)


def _run_module(name: str, *arguments: str) -> None:
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def main() -> None:
    open_closed_streams()
    with user_errors():
        app()
