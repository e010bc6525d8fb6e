"""`ivmix models remove NAME`: delete a model that `ivmix models add` registered, with its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.catalog.added_models import AddedModels
from service.catalog.registry import ModelRegistry
from service.catalog.weight_files import Source
from service.errors import ConfigurationError
from service.process.data_folder import keep_private
from service.settings import load_settings
from worker.add import adding_lock
from worker.adding.removal import all_sources, deletable, delete_files

app = typer.Typer(add_completion=False)


@app.command()
def main(
    name: str,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete an added model: its entry, and its files in the weights folder that no other model uses."""
    from service.process.command_audit import record_from_command  # Redis, for which --help must not wait

    settings = load_settings()
    keep_private(settings.data_dir)
    weights_dir = settings.weights_dir.expanduser().resolve()
    if name not in AddedModels(weights_dir).models:
        names = ", ".join(AddedModels(weights_dir).models) or "none"
        raise ConfigurationError(f"'{name}' is not among the models that `ivmix models add` registered: {names}")
    with adding_lock(weights_dir):
        added = AddedModels(weights_dir)
        sources = [Source.model_validate(added.sources[key]) for key in added.source_names(name)]
        others = [
            entry
            for entry in ModelRegistry.load(settings.models_file, weights_dir=weights_dir).known.values()
            if entry.id != name
        ]
        added.drop(name)
        kept = all_sources(added)
        folders = deletable(sources, others, weights_dir, kept)
        for folder in folders:
            typer.echo(f"{folder}: {_size(folder) / 1e9:.2f} GB")
        if not yes:
            typer.confirm(f"Delete model '{name}'{' and these folders' if folders else ''}?", abort=True)
        added.write()
        delete_files(sources, others, weights_dir, kept)
    record_from_command(settings, "model.removed", name)
    typer.echo(f"{name} is removed. A server that runs offers it until it is restarted.")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    app(prog_name="ivmix models remove")
