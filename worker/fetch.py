"""`ivmix models fetch NAME`: download a model from a Hugging Face hub: pinned, verified, safetensors only. No torch.

A file is written as `*.part`, resumed if interrupted, verified and renamed. The lock file is written last and makes the
model available.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import typer
from huggingface_hub.utils import WeakFileLock

from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.catalog.weight_files import (
    PICKLE_SUFFIXES,
    Component,
    LockedFile,
    LockedSource,
    LockFile,
    Source,
    snapshot_dir,
)
from service.errors import ConfigurationError
from service.settings import Settings, load_settings
from worker.hub_files import fetch_file
from worker.hub_listing import RemoteFile, RepoListing, is_safe_path, printable, read_listing

MAX_COMPONENT_FILES = 2000  # of all components of one source
Print = Callable[[str], None]


def fetch(entry: ModelEntry, settings: Settings, report: Print) -> None:
    """Download what is missing. Raises ConfigurationError naming the repository and file; verified files are kept."""
    components = [component for component in entry.all_components.values() if component.source.repo is not None]
    if not components:
        report(f"{entry.id} has nothing to fetch: its files are in local folders")
    fetch_components(components, settings.weights_dir, report)


def fetch_components(components: Iterable[Component], weights_dir: Path, report: Print) -> None:
    """The same for components that are on a hub."""
    by_source: dict[str, list[Component]] = {}
    for component in components:
        by_source.setdefault(component.source.lock_key, []).append(component)
    weights_dir.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(weights_dir / ".fetching"):  # two processes would write the same files
        for of_source in by_source.values():
            lock = LockFile.read(weights_dir)
            source = of_source[0].source
            locked = lock.sources.get(source.lock_key)
            locked = _fetch_source(source, of_source, locked, weights_dir, report)
            lock.with_source(source, locked).write(weights_dir)


def _fetch_source(
    source: Source, components: Iterable[Component], locked: LockedSource | None, weights_dir: Path, report: Print
) -> LockedSource:
    listing = read_listing(source, locked)
    folder = snapshot_dir(weights_dir, str(source.repo), listing.revision)
    known = {name: file.sha256 for name, file in locked.files.items()} if locked else {}
    known |= source.pinned_sha256
    files = [file for component in components for file in _wanted_files(component, listing, source)]
    report(f"{source.repo} at {listing.revision}: {len(files)} files, {sum(file.size for file in files) / 1e9:.2f} GB")
    _check_files(source, folder, files)
    fetched: dict[str, LockedFile] = {}
    for file in files:
        sha256 = fetch_file(source, listing.revision, file, folder / file.path, known.get(file.path) or file.sha256)
        if file.path not in known:
            report(f"  {file.path}: sha256 {sha256} recorded (trust on first use)")
        fetched[file.path] = LockedFile(sha256=sha256, size=file.size)
    return LockedSource(revision=listing.revision, files=fetched)


def _wanted_files(component: Component, listing: RepoListing, source: Source) -> list[RemoteFile]:
    """The component's files that the registry lists, else those with the names of its kind."""
    wanted = [file for name, file in listing.files.items() if component.has_file(name)]
    if isinstance(source.sha256, dict):
        listed = [name for name in source.sha256 if component.has_file(name)]
        if missing := [name for name in listed if name not in listing.files]:
            raise ConfigurationError(f"{source.repo} at {listing.revision} has no {', '.join(missing)}")
        wanted = [listing.files[name] for name in listed]
    if component.has_weights and not any(file.path.endswith(".safetensors") for file in wanted):
        raise ConfigurationError(f"{source.repo} at {listing.revision} has {_instead_of_weights(component, listing)}")
    if not wanted:
        raise ConfigurationError(
            f"{source.repo} at {listing.revision} has no files of {component.name} in '{component.inside}'"
        )
    return wanted


def _instead_of_weights(component: Component, listing: RepoListing) -> str:
    """What a repository has for a component without the wanted safetensors, and the way out."""
    inside = [name for name in listing.files if name.rpartition("/")[0] == component.inside]
    matches = (
        re.search(r"[./](?:model|diffusion_pytorch_model)\.(\w+)[^/.]*\.safetensors$", f"/{name}") for name in inside
    )
    if variants := sorted({match[1] for match in matches if match}):
        return (
            f"the weights of {component.name} as variant {', '.join(variants)} only; "
            f'add variant = "{variants[0]}" to its source in the models file'
        )
    pickles = [name for name in inside if name.endswith(PICKLE_SUFFIXES)]
    found = f"only pickles ({', '.join(pickles)}), which run code when loaded" if pickles else "no weights"
    return (
        f"{found} for {component.name}; ivmix loads safetensors only. "
        "Name another revision or repository, or convert them and name the local folder"
    )


def _check_files(source: Source, folder: Path, files: list[RemoteFile]) -> None:
    """Before the first byte: every file stays in the folder, and all of them fit on the disk."""
    if len(files) > MAX_COMPONENT_FILES:
        raise ConfigurationError(
            f"{source.repo}: the hub lists {len(files)} files with names of weights, more than {MAX_COMPONENT_FILES}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    root = folder.resolve()
    for file in files:
        parent = (folder / file.path).parent.resolve()
        if not is_safe_path(file.path) or not parent.is_relative_to(root):
            raise ConfigurationError(f"{source.repo}: {printable(file.path)} would be written outside {folder}")
    missing = sum(file.size for file in files if not (folder / file.path).exists())
    if missing > (free := shutil.disk_usage(folder).free):
        raise ConfigurationError(
            f"{source.repo} needs {missing / 1e9:.2f} GB in {folder}, {free / 1e9:.2f} GB are free; make room or set "
            "IVMIX_WEIGHTS_DIR"
        )


app = typer.Typer(add_completion=False)


@app.command()
def main(name: str) -> None:
    """Download a model's weights."""
    from service.process.command_audit import record_from_command  # Redis, for which --help must not wait

    settings = load_settings()
    entry = ModelRegistry.of(settings).entry(name)
    fetch(entry, settings, typer.echo)
    if missing := ModelRegistry.of(settings).entry(name).missing:
        raise ConfigurationError(f"{name} lacks {', '.join(missing)}, which no source provides")
    if entry.missing:
        record_from_command(settings, "model.fetched", name)
    typer.echo(f"{name} is ready")


if __name__ == "__main__":
    app(prog_name="ivmix models fetch")
