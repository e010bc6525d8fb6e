"""`ivmix models verify NAME`: everything that loading a model checks, without a GPU and without its memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from service.catalog.family_components import is_transformer
from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.process.quick_imports import quick_imports
from service.settings import load_settings


def verify(entry: ModelEntry) -> Iterator[str]:
    """One line per valid component. Raises ConfigurationError for the first that loading would refuse."""
    with quick_imports():  # of diffusers and torch, which take seconds: not for --help
        import torch

        from worker.networks.assembly import check_files, fit_together
        from worker.networks.component_loader import load_component
        from worker.networks.schedules import schedule_warnings
        from worker.networks.video_transformers.assembly import fit_together as fit_transformer
        from worker.networks.weight_files import weight_files

    check_files(entry)
    parts: dict[str, Any] = {}
    for name, component in entry.all_components.items():
        checks = [f"sha256 of {len(component.sha256)} files"] if component.sha256 else []
        parts[name] = load_component(entry, name, torch.float32, only_check=True)
        if component.has_weights and not component.is_file:
            checks.append("names, shapes and values of all weights")
            variant = weight_files(component).variant
            checks += [f"variant {variant}"] if variant else []
        yield f"{name}: OK ({', '.join(checks) or 'present'})"
    (fit_transformer if is_transformer(entry.family) else fit_together)(entry, parts)
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
