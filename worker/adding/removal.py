"""Deletes the files of an added model that no other model uses."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from service.catalog.added_models import ADDED_FOLDER, AddedModels
from service.catalog.model_entry import ModelEntry
from service.catalog.weight_files import LockFile, Source, snapshot_dir


def delete_files(
    sources: Sequence[Source], others: Iterable[ModelEntry], weights_dir: Path, kept: Sequence[Source]
) -> None:
    """Converted folders and fetched snapshots; never a folder that the user named.

    Args:
        others: models whose files stay.
        kept: further sources that stay: those of added models, also what they were converted from.
    """
    others = list(others)
    for folder in deletable(sources, others, weights_dir, kept):
        shutil.rmtree(folder, ignore_errors=True)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()  # `added`, or that of a repository
    in_use = {component.source.lock_key for entry in others for component in entry.all_components.values()}
    in_use |= {source.lock_key for source in kept}
    lock = LockFile.read(weights_dir)
    unlocked = {source.lock_key for source in sources if source.repo} & set(lock.sources) - in_use
    if unlocked:
        LockFile(sources={key: value for key, value in lock.sources.items() if key not in unlocked}).write(weights_dir)


def all_sources(added: AddedModels) -> list[Source]:
    return [Source.model_validate(source) for source in added.sources.values()]


def deletable(
    sources: Iterable[Source], others: Iterable[ModelEntry], weights_dir: Path, kept: Iterable[Source]
) -> list[Path]:
    """Folders in the weights folder that only these sources use."""
    in_use = {component.root for entry in others for component in entry.all_components.values()}
    in_use |= {_folder(source, weights_dir) for source in kept}
    folders = {_folder(source, weights_dir) for source in sources} - in_use
    return sorted(folder for folder in folders if folder is not None and folder.is_dir())


def _folder(source: Source, weights_dir: Path) -> Path | None:
    if source.repo is not None:
        return snapshot_dir(weights_dir, source.repo, source.revision)
    added = weights_dir / ADDED_FOLDER
    return source.folder if source.folder is not None and source.folder.parent == added else None
