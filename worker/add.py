"""`ivmix models add NAME`: make a registry entry from a folder, a file or a hub repository, and convert what needs it.

The entry is written last, after `verify` passed; if anything fails before, no file of the new model stays.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
import shutil
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import typer

from service.catalog.added_models import ADDED_FOLDER, AddedModels
from service.catalog.family_components import Family
from service.catalog.model_entry import ModelEntry
from service.catalog.prompt_limits import NAME
from service.catalog.registry import ModelRegistry
from service.catalog.weight_files import Component, LockFile, Source
from service.errors import ConfigurationError
from service.process.data_folder import keep_private, prepare_folder
from service.settings import Settings, load_settings
from worker.adding.distilled import DISTILLED_HELP, distilled_settings
from worker.adding.entry import draft, fit_limits, tables
from worker.adding.gather import Gathering, Given
from worker.adding.removal import all_sources, delete_files

PARTIAL = ".partial-"
SPARE_BYTES = 50_000_000  # free space to leave

Print = Callable[[str], None]


def add(
    given: Given, settings: Settings, changes: dict[str, Any], report: Print, *, may_replace: bool = False
) -> ModelEntry:
    """Register the model. Raises ConfigurationError with the reason; then nothing has changed.

    Args:
        changes: keys of the entry that replace the family's defaults.
        may_replace: whether an added model of this name is replaced.
    """
    weights_dir = settings.weights_dir.expanduser().resolve()
    prepare_folder(weights_dir, "IVMIX_WEIGHTS_DIR")
    with adding_lock(weights_dir):
        registry = ModelRegistry.load(settings.models_file, weights_dir=weights_dir)
        _check_name(given.name, registry, settings, may_replace)
        with _partial_folder(weights_dir, given.name) as (partial, final):
            found = Gathering(given, registry, partial, weights_dir)
            family = found.run()
            raw, sources = draft(
                given.name, family, found.parts, found.adapters, found.settings | changes, found.downloads
            )
            _check_space(found, weights_dir)
            locked_before = set(LockFile.read(weights_dir).sources)
            _fetch(ModelRegistry.build(given.name, raw, sources, weights_dir), found.downloads, weights_dir, report)
            try:
                _convert(found, partial, report)
                raw = _verified(given.name, raw, sources, weights_dir, report)
            except ConfigurationError:
                fetched = [s for s in sources.values() if s.repo and s.lock_key not in locked_before]
                delete_files(fetched, registry.known.values(), weights_dir, all_sources(AddedModels(weights_dir)))
                raise
            return _publish(given.name, raw, sources, registry, weights_dir, partial, final)


def _check_name(name: str, registry: ModelRegistry, settings: Settings, may_replace: bool) -> None:
    added = AddedModels(settings.weights_dir.expanduser())
    if name.startswith(".") or not re.fullmatch(NAME, name):
        raise ConfigurationError(
            f"'{name}' cannot be a model's name: 1 to 64 letters, digits and _ . - are, not beginning with a dot"
        )
    aliases = {alias for entry in registry.known.values() for alias in entry.aliases}
    taken = {*registry.known, *aliases, *(alias.partition("=")[0] for alias in settings.model_aliases)}
    if name in taken and name not in added.models:
        raise ConfigurationError(f"there is a model '{name}' in the models file already; choose another name")
    if name in taken and not may_replace:
        raise ConfigurationError(f"there is a model '{name}' already; choose another name, or add --replace")


@contextmanager
def adding_lock(weights_dir: Path) -> Generator[None]:
    """One `add` or `remove` at a time. What a killed one left is deleted."""
    from huggingface_hub.utils import WeakFileLock

    with WeakFileLock(weights_dir / ".adding"):
        for left in (weights_dir / ADDED_FOLDER).glob(f"{PARTIAL}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


@contextmanager
def _partial_folder(weights_dir: Path, name: str) -> Generator[tuple[Path, Path]]:
    """Where to convert to, and the folder's later name. It is deleted on any error, Ctrl-C too."""
    unique = f"{name}-{secrets.token_hex(4)}"
    partial, final = (weights_dir / ADDED_FOLDER / f"{prefix}{unique}" for prefix in (PARTIAL, ""))
    try:
        yield partial, final
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not any((weights_dir / ADDED_FOLDER).glob("*")):
            shutil.rmtree(weights_dir / ADDED_FOLDER, ignore_errors=True)


def _check_space(found: Gathering, weights_dir: Path) -> None:
    downloads = [size for file in found.downloads if not file.is_available for size in file.sizes.values()]
    needed = sum(conversion.size for conversion in found.conversions) + sum(downloads) + SPARE_BYTES
    if found.conversions and needed > (free := shutil.disk_usage(weights_dir).free):
        raise ConfigurationError(
            f"{'fetching and ' if downloads else ''}converting needs {needed / 1e9:.2f} GB in {weights_dir}, "
            f"{free / 1e9:.2f} GB are free; make room or set IVMIX_WEIGHTS_DIR"
        )


def _fetch(entry: ModelEntry, downloads: list[Component], weights_dir: Path, report: Print) -> None:
    """Everything of the model that is on a hub."""
    components = [component for component in entry.all_components.values() if component.source.repo]
    if components or downloads:
        from worker.fetch import fetch_components

        fetch_components([*components, *downloads], weights_dir, report)


def _convert(found: Gathering, folder: Path, report: Print) -> None:
    if found.conversions:
        folder.mkdir(parents=True, mode=0o700)
    for conversion in found.conversions:
        report(conversion.what)
        conversion.run()


def _verified(
    name: str, raw: dict[str, Any], sources: dict[str, Source], weights_dir: Path, report: Print
) -> dict[str, Any]:
    """Verify all components, and return the entry within the limits of its networks."""
    from worker.verify import verify

    raw = fit_limits(raw, ModelRegistry.build(name, raw, sources, weights_dir))
    for line in verify(ModelRegistry.build(name, raw, sources, weights_dir)):
        report(line)
    return raw


def _publish(
    name: str,
    raw: dict[str, Any],
    sources: dict[str, Source],
    registry: ModelRegistry,
    weights_dir: Path,
    partial: Path,
    final: Path,
) -> ModelEntry:
    """Rename the converted folder and write the entry; the files of a replaced model are deleted then."""
    added = AddedModels(weights_dir)
    replaced = [Source.model_validate(added.sources[key]) for key in added.source_names(name)]
    if partial.exists():
        partial.rename(final)
    moved = {
        key: source.model_copy(update={"folder": final}) if source.folder == partial else source
        for key, source in sources.items()
    }
    try:
        added.put(name, raw, tables(moved))
        added.write()
    except BaseException:
        shutil.rmtree(final, ignore_errors=True)
        raise
    entry = ModelRegistry.build(name, raw, moved, weights_dir)
    others = [entry for other, entry in registry.known.items() if other != name]
    delete_files(replaced, [*others, entry], weights_dir, all_sources(added))
    return entry


def _next_step(name: str, settings: Settings) -> str:
    offered = (
        f" Add it to IVMIX_MODELS, which names the offered models ({', '.join(settings.models)})."
        if settings.models
        else ""
    )
    return f'{offered} Restart the server to offer it, then:\n  ivmix submit "a prompt" --model {name} -o {name}.mp4'


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)  # an exception, so that nothing half converted stays


app = typer.Typer(add_completion=False)
SizeOption = Annotated[list[str] | None, typer.Option(help="WIDTHxHEIGHT; may be repeated, the first is the default.")]
LoraOption = Annotated[list[str] | None, typer.Option(help="FILE[:SCALE], here or on a hub; may be repeated.")]
SourceOption = Annotated[
    str,
    typer.Option(
        "--from", help="Folder, .safetensors file, or owner/repo, owner/repo@revision or owner/repo/file of a hub."
    ),
]
SelectableOption = Annotated[
    list[str] | None, typer.Option(help="[NAME=]FILE[:SCALE] that requests may choose; may be repeated.")
]


@app.command()
def main(
    name: Annotated[str, typer.Argument(help="Name of the new model in requests.")],
    source: SourceOption,
    motion_adapter: Annotated[str | None, typer.Option(help="AnimateDiff: motion modules; likewise.")] = None,
    sparse_control: Annotated[str | None, typer.Option(help="SparseCtrl RGB, for first frames; likewise.")] = None,
    image_model: Annotated[str | None, typer.Option(help="Another image model with its text encoder.")] = None,
    vae: Annotated[str | None, typer.Option(help="Another VAE.")] = None,
    lora: LoraOption = None,
    selectable_lora: SelectableOption = None,
    textual_inversion: Annotated[list[str] | None, typer.Option(help="FILE[:TOKEN]; may be repeated.")] = None,
    family: Annotated[Family | None, typer.Option(help="Default: as the configs say.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the tokenizer of a single file.")] = None,
    config: Annotated[Path | None, typer.Option(help="Folder with the diffusers configs of a single file.")] = None,
    prediction_type: Annotated[
        Literal["epsilon", "v_prediction"] | None, typer.Option(help="What the UNet of a single file predicts.")
    ] = None,
    distilled: Annotated[str | None, typer.Option(help=DISTILLED_HELP)] = None,
    base: Annotated[str | None, typer.Option(help="Model that gives the components that are missing.")] = None,
    variant: Annotated[str | None, typer.Option(help="Such as fp16, where a folder has several.")] = None,
    size: SizeOption = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, for `ivmix models list`.")] = None,
    description: Annotated[str | None, typer.Option(help="For GET /v1/models.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an added model of this name.")] = False,
) -> None:
    """Add a model from what you have: a diffusers folder, a single file, or a hub repository. safetensors only."""
    from service.process.command_audit import record_from_command  # Redis, for which --help must not wait

    settings = load_settings()
    keep_private(settings.data_dir)
    signal.signal(signal.SIGTERM, _exit)
    given = Given(name, source, family, motion_adapter, image_model, vae, tokenizer, config, base)
    loras, selectable, words = (tuple(files or ()) for files in (lora, selectable_lora, textual_inversion))
    rest = {"loras": loras, "selectable_loras": selectable, "inversions": words, "sparse_control": sparse_control}
    given = dataclasses.replace(given, variant=variant, prediction=prediction_type, distilled=distilled, **rest)
    changes = {"licence": licence or f"not known; see {source}", "description": description or f"Added from {source}."}
    changes |= ({"sizes": size} if size else {}) | distilled_settings(distilled)
    entry = add(given, settings, changes, typer.echo, may_replace=replace)
    record_from_command(settings, "model.added", name, source=source, replaced=replace)
    typer.echo(f"{name} is added (family {entry.family}).{_next_step(name, settings)}")


if __name__ == "__main__":
    app(prog_name="ivmix models add")
