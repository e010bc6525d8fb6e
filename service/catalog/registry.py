"""The model registry: a TOML file that names every model and the sources of its files, and `added.toml` in the weights
folder with those that `ivmix models add` registered. Read without torch.

A model is offered when its weights are on this machine, or when the operator names it in IVMIX_MODELS.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from service.catalog.adapters import locate_adapters
from service.catalog.added_models import ADDED_FILE
from service.catalog.bounds import Range
from service.catalog.model_entry import ModelEntry
from service.catalog.optimise import Optimise
from service.catalog.scheduler_settings import SPACING_KEYS
from service.catalog.weight_files import Component, LockFile, Source
from service.errors import ConfigurationError, ModelNotFetched, ModelNotFound
from service.frozen_model import FrozenModel
from service.jobs.context_windows import ContextWindows
from service.jobs.sampler_settings import SamplerSettings
from service.settings import MODELS_FILE, Settings, default_data_dir
from service.validation_messages import unknown_parameter


class ModelRegistry:
    """`known` has every entry; `get` and `ids` only the offered ones.

    Offered are the models in `names`, else those on this machine. The first is the default.
    """

    def __init__(
        self, entries: Iterable[ModelEntry], names: Collection[str] = (), aliases: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            names: models to offer.
            aliases: model by its further name, in addition to the aliases of the entries.
        """
        self.known: dict[str, ModelEntry] = _with_aliases({entry.id: entry for entry in entries}, aliases or {})
        self._aliases = {alias: entry.id for entry in self.known.values() for alias in entry.aliases}
        if unknown := [name for name in names if name not in self.known]:
            raise ConfigurationError(
                f"IVMIX_MODELS: there is no {', '.join(unknown)} in the registry; it has {', '.join(self.known)}"
            )
        available = (name for name, entry in self.known.items() if not entry.missing)
        self._entries = {name: self.known[name] for name in (names or available)}

    @classmethod
    def load(
        cls,
        file: Path = MODELS_FILE,
        *,
        weights_dir: Path | None = None,
        names: Collection[str] = (),
        aliases: Mapping[str, str] | None = None,
    ) -> ModelRegistry:
        """Raises ConfigurationError naming the file and what is wrong in it."""
        try:
            file, weights_dir = _expanded(file), _expanded(weights_dir or default_data_dir() / "models")
        except ValueError as e:
            raise ConfigurationError(f"models file {file}: {e}") from e
        lock, added_file = LockFile.read(weights_dir), weights_dir / ADDED_FILE
        entries = _entries(file, weights_dir, lock)
        added = _entries(added_file, weights_dir, lock) if added_file.is_file() else []
        if twice := sorted({entry.id for entry in entries} & {entry.id for entry in added}):
            raise ConfigurationError(
                f"model {twice[0]} is in {file} and in {added_file}; `ivmix models remove {twice[0]}` deletes the "
                "latter"
            )
        return cls([*entries, *added], names, aliases)

    @staticmethod
    def build(name: str, raw: Mapping[str, Any], sources: Mapping[str, Source], weights_dir: Path) -> ModelEntry:
        """An entry that is in no file yet. Raises ConfigurationError."""
        try:
            return _entry(weights_dir / ADDED_FILE, name, raw, sources, weights_dir, LockFile.read(weights_dir))
        except ValueError as e:
            raise ConfigurationError(str(e)) from e

    @classmethod
    def of(cls, settings: Settings) -> ModelRegistry:
        aliases = dict(entry.split("=", 1) for entry in settings.model_aliases)
        return cls.load(settings.models_file, weights_dir=settings.weights_dir, names=settings.models, aliases=aliases)

    def ids(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def real_name(self, model: str) -> str:
        """The id of the model with this alias; any other name unchanged."""
        return self._aliases.get(model, model)

    def get(self, model: str | None = None) -> ModelEntry:
        """An offered model by its id or alias; None: the default.

        Raises ModelNotFetched if it is known but not offered, else ModelNotFound.
        """
        wanted = self.real_name(model) if model else next(iter(self._entries or self.known))
        if wanted in self._entries:
            return self._entries[wanted]
        raise ModelNotFetched(wanted) if wanted in self.known else ModelNotFound(wanted, self.ids())

    def entry(self, model: str) -> ModelEntry:
        """A known model, offered or not. Raises ModelNotFound."""
        if model not in self.known:
            raise ModelNotFound(model, tuple(self.known))
        return self.known[model]


def _with_aliases(known: dict[str, ModelEntry], aliases: Mapping[str, str]) -> dict[str, ModelEntry]:
    """Adds aliases to their entries. Raises ConfigurationError if one is ambiguous or names no model."""
    if unknown := sorted(set(aliases.values()) - set(known)):
        raise ConfigurationError(
            f"IVMIX_MODEL_ALIASES: there is no model {', '.join(unknown)}; the registry has {', '.join(known)}"
        )
    for alias, model in aliases.items():
        known[model] = known[model].model_copy(update={"aliases": tuple(dict.fromkeys((*known[model].aliases, alias)))})
    taken = set(known)
    for entry in known.values():
        if twice := sorted(taken & set(entry.aliases)):
            raise ConfigurationError(f"alias {twice[0]} of model {entry.id} is also the name of another model")
        taken |= set(entry.aliases)
    return known


class _RegistryFile(FrozenModel):
    sources: dict[str, Source] = {}
    models: dict[str, dict[str, Any]] = Field(min_length=1)


def _entries(file: Path, weights_dir: Path, lock: LockFile) -> list[ModelEntry]:
    try:
        raw = _RegistryFile.model_validate(tomllib.loads(file.read_text("utf-8")))
        sources = {name: _resolved(file, source) for name, source in raw.sources.items()}
        return [_entry(file, name, entry, sources, weights_dir, lock) for name, entry in raw.models.items()]
    except (OSError, RuntimeError, ValueError) as e:  # RuntimeError: a link that points to itself
        raise ConfigurationError(f"models file {file}: {e}") from e


def _resolved(file: Path, source: Source) -> Source:
    if source.folder is None:
        return source
    return source.model_copy(update={"folder": _absolute(file, source.folder)})


def _absolute(file: Path, folder: str | Path) -> Path:
    """Folders are relative to the file that names them."""
    return (file.parent / _expanded(Path(folder))).resolve()


def _expanded(path: Path) -> Path:
    """With the home directory for a leading `~`. Raises ValueError if there is none."""
    try:
        return path.expanduser()
    except RuntimeError as e:
        raise ValueError(f"{path}: there is no such home directory; write the folder without ~") from e


def _entry(
    file: Path, name: str, raw: Mapping[str, Any], sources: Mapping[str, Source], weights_dir: Path, lock: LockFile
) -> ModelEntry:
    try:
        places = _texts(raw, "components")
        located = {part: Component.locate(part, place, sources, weights_dir, lock) for part, place in places.items()}
        adapters = locate_adapters(raw, lambda part, place: Component.locate(part, place, sources, weights_dir, lock))
        if not isinstance(path := raw.get("path", "."), str):
            raise ValueError(f"path must be a text, not {path!r}")
        own = {"path": _absolute(file, path)} if "path" in raw else {}
        return ModelEntry.model_validate({"id": name, **raw, **adapters, **own, "components": located})
    except ValueError as e:
        raise ValueError(f"models.{name}: {_reason(e)}") from e


def _reason(e: ValueError) -> str:
    """One sentence for each thing that is wrong in an entry, with the key that may have been meant."""
    if not isinstance(e, ValidationError):
        return str(e)
    errors = e.errors(include_url=False)
    outer = {error["loc"][:-1] for error in errors}  # a list is wrong only because of what is in it
    return "; ".join(_sentence(error) for error in errors if error["loc"] not in outer - {()})


def _sentence(error: ErrorDetails) -> str:
    location, kind, value = [str(part) for part in error["loc"]], error["type"], error["input"]
    table = _TABLES.get(".".join(location[:-1]))
    if kind == "extra_forbidden" and table is not None:
        return unknown_parameter(".".join(location), [".".join([*location[:-1], key]) for key in table], kind="key")
    # Our own messages name the value where it helps; that of a missing key is the table around it.
    shown = "" if kind in ("missing", "value_error") or isinstance(value, dict | list) else f"={value!r}"
    where = f"{'.'.join(location)}{shown[:200]}" if location else ""
    return ": ".join(filter(None, (where, error["msg"].removeprefix("Value error, "))))


_TABLES = {
    "": ModelEntry.model_fields,
    "spacing": SPACING_KEYS,
    "sampler": SamplerSettings.model_fields,
    "optimise": Optimise.model_fields,
    "context_windows": ContextWindows.model_fields,
    **dict.fromkeys(("num_frames", "fps", "num_inference_steps", "guidance_scale"), Range.model_fields),
}


def _texts(raw: Mapping[str, Any], name: str) -> dict[str, str]:
    """Raises ValueError if the field is not a table of texts."""
    table: object = raw.get(name, {})
    if not isinstance(table, dict) or not all(isinstance(text, str) for text in cast("dict[str, Any]", table).values()):
        raise ValueError(f'{name} must be a table of places such as {{ unet = "source/folder" }}, not {table!r}')
    return cast("dict[str, str]", table)
