"""The registry: one TOML file that names every model and where its files come from. Read without torch.

A model is offered when its weights are on this machine, or when the operator names it (IVMIX_MODELS).
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from service.base import FrozenModel
from service.catalog.model_entry import ModelEntry
from service.catalog.weight_files import Lock, Source, locate
from service.errors import ConfigurationError, ModelNotFetched, ModelNotFound
from service.settings import MODELS_FILE, Settings, default_data_dir


class ModelRegistry:
    """The models that are offered, in the order of the registry or else of `names`; the first is the default.

    `known` has every entry, `get` only those that are offered.
    """

    def __init__(self, entries: Iterable[ModelEntry], names: Collection[str] = ()) -> None:
        self.known: dict[str, ModelEntry] = {entry.id: entry for entry in entries}
        if unknown := [name for name in names if name not in self.known]:
            raise ConfigurationError(f"models: there is no {', '.join(unknown)}; there are {', '.join(self.known)}")
        here = (name for name, entry in self.known.items() if not entry.missing)
        self._entries = {name: self.known[name] for name in (names or here)}

    @classmethod
    def load(
        cls, file: Path = MODELS_FILE, *, weights_dir: Path | None = None, names: Collection[str] = ()
    ) -> ModelRegistry:
        """Raises ConfigurationError naming the file and what is wrong in it."""
        weights_dir = weights_dir or default_data_dir() / "models"
        lock = Lock.read(weights_dir)
        try:
            raw = _Registry.model_validate(tomllib.loads(file.read_text()))
            sources = {name: _beside(file, source) for name, source in raw.sources.items()}
            return cls(
                [_entry(file, name, entry, sources, weights_dir, lock) for name, entry in raw.models.items()], names
            )
        except (OSError, ValueError) as e:
            raise ConfigurationError(f"model file {file}: {e}") from e

    @classmethod
    def of(cls, settings: Settings) -> ModelRegistry:
        return cls.load(settings.models_file, weights_dir=settings.weights_dir, names=settings.models)

    def ids(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def get(self, model: str | None = None) -> ModelEntry:
        """Raises ModelNotFetched for one that is known and not offered, else ModelNotFound."""
        wanted = model or next(iter(self._entries or self.known))
        if wanted in self._entries:
            return self._entries[wanted]
        raise ModelNotFetched(wanted) if wanted in self.known else ModelNotFound(wanted, self.ids())

    def entry(self, model: str) -> ModelEntry:
        """Offered or not. Raises ModelNotFound."""
        if model not in self.known:
            raise ModelNotFound(model, tuple(self.known))
        return self.known[model]


class _Registry(FrozenModel):
    """The file as it is written."""

    sources: dict[str, Source] = {}
    models: dict[str, dict[str, Any]] = Field(min_length=1)


def _beside(file: Path, source: Source) -> Source:
    """Folders are relative to the file that names them."""
    return (
        source
        if source.folder is None
        else source.model_copy(update={"folder": (file.parent / source.folder).resolve()})
    )


def _entry(
    file: Path, name: str, raw: Mapping[str, Any], sources: Mapping[str, Source], weights_dir: Path, lock: Lock
) -> ModelEntry:
    try:
        places = dict(raw.get("components", {}))
        located = {part: locate(part, place, sources, weights_dir, lock) for part, place in places.items()}
        path = {"path": (file.parent / raw["path"]).resolve()} if "path" in raw else {}
        return ModelEntry.model_validate({"id": name, **raw, **path, "components": located})
    except ValueError as e:
        raise ValueError(f"models.{name}: {e}") from e
