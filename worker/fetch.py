"""`ivmix models fetch NAME`: a model's files from a Hugging Face hub: pinned, checked, safetensors only. No torch.

A file is written beside its place as `*.part`, goes on where it was broken off, is checked and then renamed; the model
is there once the lock file says so, which is written last.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import httpx2
import typer
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import http_get  # pyright: ignore[reportUnknownVariableType]
from huggingface_hub.utils import WeakFileLock, build_hf_headers  # pyright: ignore[reportUnknownVariableType]

from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.catalog.weight_files import UNSAFE, Component, Lock, LockedFile, LockedSource, Source, digest, hub_folder
from service.errors import ConfigurationError, ServiceError
from service.settings import Settings, load_settings

Say = Callable[[str], None]


@dataclass(frozen=True)
class RemoteFile:
    """As the hub lists it; only files in large-file storage have a sha256 there."""

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class Listing:
    revision: str
    files: dict[str, RemoteFile]


def fetch(entry: ModelEntry, settings: Settings, say: Say) -> None:
    """Raises ConfigurationError naming the repository, the file and what is wrong with it; what was right stays."""
    by_source: dict[str, list[Component]] = {}
    for part in entry.parts.values():
        if part.source.repo is not None:
            by_source.setdefault(part.source.key, []).append(part)
    if not by_source:
        say(f"{entry.id} has nothing to fetch: its files are in folders of this machine")
    settings.weights_dir.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(settings.weights_dir / ".fetching"):  # one at a time: two would write the same files
        for parts in by_source.values():
            lock = Lock.read(settings.weights_dir)
            source = parts[0].source
            locked = _fetch_source(source, parts, lock.sources.get(source.key), settings.weights_dir, say)
            lock.with_source(source, locked).write(settings.weights_dir)


def _fetch_source(
    source: Source, parts: Iterable[Component], locked: LockedSource | None, weights_dir: Path, say: Say
) -> LockedSource:
    listing = _listing(source, locked)
    folder = hub_folder(weights_dir, str(source.repo), listing.revision)
    known = {name: file.sha256 for name, file in locked.files.items()} if locked else {}
    known |= source.pinned
    files = [file for part in parts for file in _wanted(part, listing, source)]
    say(f"{source.repo} at {listing.revision}: {len(files)} files, {sum(file.size for file in files) / 1e9:.2f} GB")
    got: dict[str, LockedFile] = {}
    for file in files:
        sha256 = _fetch_file(source, listing.revision, file, folder / file.path, known.get(file.path) or file.sha256)
        if file.path not in known:
            say(f"  {file.path}: sha256 {sha256}, written down as it came")
        got[file.path] = LockedFile(sha256=sha256, size=file.size)
    return LockedSource(revision=listing.revision, files=got)


def _listing(source: Source, locked: LockedSource | None) -> Listing:
    """Of the pinned commit, else of the one that was taken before, else of the newest."""
    wanted = source.revision if source.revision != "unpinned" else locked.revision if locked else None
    try:
        info = HfApi().model_info(str(source.repo), revision=wanted, files_metadata=True)
    except RevisionNotFoundError as e:
        raise ConfigurationError(
            f"{source.repo} has no commit {wanted} any more; its history was rewritten. Look at what is there now, and "
            "pin that in the models file if you trust it"
        ) from e
    except RepositoryNotFoundError as e:
        raise ConfigurationError(f"{source.repo} is not on the hub, or needs HF_TOKEN") from e
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as e:
        raise ConfigurationError(f"{source.repo}: the hub does not answer: {e}") from e
    if info.sha is None or (wanted is not None and info.sha != wanted):
        raise ConfigurationError(f"{source.repo}: asked for commit {wanted}, the hub gave {info.sha}")
    files = (
        RemoteFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None)
        for file in info.siblings or ()
    )
    return Listing(info.sha, {file.path: file for file in files})


def _wanted(part: Component, listing: Listing, source: Source) -> list[RemoteFile]:
    """The files of one component: those that the registry lists, else those its kind consists of."""
    own = [file for name, file in listing.files.items() if part.has(name)]
    if isinstance(source.sha256, dict):
        listed = [name for name in source.sha256 if part.has(name)]
        if gone := [name for name in listed if name not in listing.files]:
            raise ConfigurationError(f"{source.repo} at {listing.revision} has no {', '.join(gone)}")
        own = [listing.files[name] for name in listed]
    if part.has_weights and not any(file.path.endswith(".safetensors") for file in own):
        here = [name for name in listing.files if name.rpartition("/")[0] == part.inside]
        pickles = [name for name in here if name.endswith(UNSAFE)]
        found = f"only pickles ({', '.join(pickles)}), which run code when they are loaded" if pickles else "no weights"
        raise ConfigurationError(
            f"{source.repo} at {listing.revision} has {found}, for {part.name}; ivmix takes safetensors only. Name "
            "another revision or repository, or convert them and use a folder"
        )
    if not own:
        raise ConfigurationError(f"{source.repo} at {listing.revision} has nothing for {part.name} in '{part.inside}'")
    return own


def _fetch_file(source: Source, revision: str, file: RemoteFile, place: Path, expected: str | None) -> str:
    """The sha256 of the file, which is in its place."""
    if place.exists() and place.stat().st_size == file.size and expected in (None, found := digest(place)):
        return found
    if expected is not None and file.sha256 not in (None, expected):
        raise ConfigurationError(
            f"{source.repo}: {file.path} at {revision} has sha256 {file.sha256}, must have {expected}; not fetched"
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f"{place.name}.part")
    try:
        with part.open("ab") as stream:
            if stream.tell() > file.size:
                stream.truncate(0)
            http_get(
                hf_hub_url(str(source.repo), file.path, revision=revision),
                stream,
                resume_size=stream.tell(),
                headers=build_hf_headers(),
                expected_size=file.size,
                displayed_filename=file.path,
            )
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as e:
        raise ConfigurationError(f"{source.repo}: {file.path} broke off ({e}); run it again to go on") from e
    found = digest(part)
    if expected is not None and found != expected:
        part.unlink()
        raise ConfigurationError(
            f"{source.repo}: {file.path} at {revision} has sha256 {found}, must have {expected}; it was thrown away"
        )
    part.replace(place)
    return found


def main(name: str) -> None:
    try:
        settings = load_settings()
        registry = ModelRegistry.of(settings)
        fetch(registry.entry(name), settings, typer.echo)
        left = ModelRegistry.of(settings).entry(name).missing
    except ServiceError as e:
        typer.echo(f"ivmix: {e}", err=True)
        raise typer.Exit(1) from e
    typer.echo(f"{name} is here" if not left else f"{name} lacks {', '.join(left)}")
    if left:
        raise typer.Exit(1)


if __name__ == "__main__":
    sys.argv[0] = "ivmix models fetch"
    typer.run(main)
