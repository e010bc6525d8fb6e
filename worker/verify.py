"""`ivmix models verify NAME`: check SHA-256, names and shapes of all weights without loading them."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.process.quick_imports import quick_imports
from service.settings import load_settings


def verify(entry: ModelEntry) -> Iterator[str]:
    """One line per valid component. Raises ConfigurationError for the first invalid one."""
    with quick_imports():  # of diffusers, which takes seconds: not for --help
        from worker.networks.schedules import load_schedules, schedule_warnings
        from worker.networks.vae_config import check_vae_config
        from worker.networks.weight_checks import check_files, check_shapes

    check_files(entry)
    for name, component in entry.all_components.items():
        checks = [f"sha256 of {len(component.sha256)} files"] if component.sha256 else []
        if component.has_weights and not component.is_file:
            check_shapes(entry, name)
            checks.append("names and shapes of all weights")
        yield f"{name}: OK ({', '.join(checks) or 'present'})"
    load_schedules(entry)
    check_vae_config(entry)
    yield from (f"warning: {warning}" for warning in schedule_warnings(entry))


app = typer.Typer(add_completion=False)


@app.command()
def main(name: str) -> None:
    """Check a model on this machine."""
    for line in verify(ModelRegistry.of(load_settings()).entry(name)):
        typer.echo(line)
    typer.echo(f"{name}: OK")


if __name__ == "__main__":
    app(prog_name="ivmix models verify")
