"""`ivmix models tune NAME`: measure the configurations of a model on this machine, and keep the fastest for workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.cli.console import Steps
from service.cli.errors import user_errors
from service.errors import ConfigurationError, ServiceUnavailable
from service.process.folder_lock import FolderInUse
from service.process.quick_imports import quick_imports
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from worker.child.tuning.record import Measured, TuningRecord

WIDTH = 160  # columns of the table in files and pipes
WAIT_S = 5.0  # for another process that tunes the same model

app = typer.Typer(add_completion=False)


@app.command()
def main(
    name: str,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record instead of a table.")] = False,
    seconds: Annotated[
        float, typer.Option(min=1, help="After so many seconds no configuration is begun; compiling may take minutes.")
    ] = 600.0,
) -> None:
    """Measure a model on this machine."""
    settings = load_settings()
    entry = ModelRegistry.of(settings).get(name)
    if entry.optimise is not None:
        raise ConfigurationError(
            f"model {entry.id} has a table optimise in the models file, which is used as it is; remove it, or write "
            'optimise = "auto"'
        )
    record, place = _tuned(entry, settings, seconds)
    if as_json:
        typer.echo(record.model_dump_json(indent=2))
        return
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(_table(record))
    typer.echo(f"{record.summary}\n{place}")


def _tuned(entry: ModelEntry, settings: Settings, seconds: float) -> tuple[TuningRecord, str]:
    """The record, and where it is kept. Raises ServiceUnavailable if another process is tuning the model."""
    steps = Steps(Console(stderr=True))
    with steps.step("models", f"loading {entry.id}") as step:
        with quick_imports():
            from worker.child.engine import Engine
            from worker.child.tuning.record import FILE, TuningFiles, TuningKey, write
            from worker.child.tuning.start import tune

        engine = Engine(entry)
        step.done = f"{entry.id} on {engine.device_name}"
    with steps.step("tuning", "measuring") as step:

        def save(found: TuningRecord) -> None:
            step.update(f"measuring {found.trying}" if found.trying else "measured")
            write(found, folder)

        try:
            with TuningFiles(settings, TuningKey.of(engine)).locked(WAIT_S) as folder:
                record = tune(engine, seconds, save)
        except FolderInUse as e:
            raise ServiceUnavailable(f"another process is tuning {entry.id} on this card; wait for it") from e
        step.done = f"{len(record.results)} configurations in {record.seconds:.0f} s"
    return record, f"kept in {folder / FILE}" if folder else "not kept: no folder can be written"


def _table(record: TuningRecord) -> Table:
    networks = sorted({network for result in record.results for network in result.milliseconds})
    columns = ("configuration", *(f"{network} ms" for network in networks), "s per clip", "error", "")
    table = Table(*columns, box=None, pad_edge=False)
    for result in record.results:
        times = (f"{ms:.4g}" if (ms := result.milliseconds.get(network)) else "-" for network in networks)
        seconds = f"{result.seconds_per_clip:.4g}" if result.seconds_per_clip else "-"
        error = "-" if result.error is None else f"{result.error:.1e}"
        table.add_row(str(result.optimise), *times, seconds, error, _verdict(record, result))
    return table


def _verdict(record: TuningRecord, result: Measured) -> str:
    return result.problem or ("taken" if result.optimise == record.chosen else "")


if __name__ == "__main__":
    with user_errors():
        app(prog_name="ivmix models tune")
