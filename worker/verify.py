"""`ivmix models verify NAME`: sha256 of every file, names and shapes of every weight, without loading them."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import typer

from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.errors import ServiceError
from service.settings import load_settings
from worker.networks.components import check_files, check_shapes


def verify(entry: ModelEntry) -> Iterator[str]:
    """One line for each component that is right. Raises ConfigurationError for the first thing that is not."""
    check_files(entry)
    for name, part in entry.parts.items():
        known = f"{len(part.sha256)} files with the right sha256" if part.sha256 else "no sha256 known"
        if part.has_weights and not part.is_file:
            check_shapes(entry, name)
            known += ", weights fit the configuration"
        yield f"{name}: {known}"


def main(name: str) -> None:
    try:
        for line in verify(ModelRegistry.of(load_settings()).entry(name)):
            typer.echo(line)
    except ServiceError as e:
        typer.echo(f"ivmix: {e}", err=True)
        raise typer.Exit(1) from e
    typer.echo(f"{name} is as it must be")


if __name__ == "__main__":
    sys.argv[0] = "ivmix models verify"
    typer.run(main)
