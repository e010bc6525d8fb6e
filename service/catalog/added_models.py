"""The models that `ivmix models add` registered: `added.toml` in the weights folder, read next to the models file.

The sources of model NAME are `NAME.1`, `NAME.2`, ...; its converted files are in a folder of `added/`.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from service.errors import ConfigurationError

ADDED_FILE = "added.toml"
ADDED_FOLDER = "added"
HEADER = """\
# Written by `ivmix models add`, and read in addition to the models file. Entries may be edited;
# `ivmix models remove NAME` deletes one.
"""


class AddedModels:
    """Entries and sources as they are in the file, by name."""

    def __init__(self, weights_dir: Path) -> None:
        """Raises ConfigurationError if the file cannot be read; a missing one is empty."""
        self.file = weights_dir / ADDED_FILE
        try:
            content = tomllib.loads(self.file.read_text("utf-8"))
        except FileNotFoundError:
            content = {}
        except (OSError, ValueError) as e:
            raise ConfigurationError(f"models file {self.file}: {e}") from e
        self.models: dict[str, dict[str, Any]] = content.get("models", {})
        self.sources: dict[str, dict[str, Any]] = content.get("sources", {})

    def put(self, name: str, entry: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]]) -> None:
        """Add the model, or replace it."""
        self.drop(name)
        self.models[name] = dict(entry)
        self.sources |= {key: dict(source) for key, source in sources.items()}

    def drop(self, name: str) -> None:
        for key in self.source_names(name):
            del self.sources[key]
        self.models.pop(name, None)

    def source_names(self, name: str) -> list[str]:
        return [key for key in self.sources if key.rpartition(".")[0] == name]

    def write(self) -> None:
        """Replace the file at once; without models there is none. Only this user can read it."""
        if not self.models:
            self.file.unlink(missing_ok=True)
            return
        temporary = self.file.with_name(f".{ADDED_FILE}.{os.getpid()}")
        with open(temporary, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
            stream.write(self._text())
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self.file)

    def _text(self) -> str:
        blocks: list[str] = [HEADER]
        for name, entry in self.models.items():
            lines = [f"{_key(key)} = {toml(value)}" for key, value in entry.items() if key != "components"]
            blocks.append(_table(f"models.{_key(name)}", lines))
            places = cast("dict[str, str]", entry["components"])
            lines = [f"{_key(key)} = {toml(place)}" for key, place in places.items()]
            blocks.append(_table(f"models.{_key(name)}.components", lines))
        for name, source in self.sources.items():
            blocks.append(_table(f"sources.{_key(name)}", [f"{_key(k)} = {toml(v)}" for k, v in source.items()]))
        return "\n".join(blocks)


def toml(value: object) -> str:
    """A value as one line of TOML. Raises TypeError for a type that no registry entry has."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():  # JSON's escapes are TOML's, but TOML also escapes DEL
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return f"[{', '.join(toml(item) for item in cast('list[object]', value))}]"
        case dict():
            items = cast("dict[str, object]", value).items()
            return f"{{ {', '.join(f'{_key(key)} = {toml(item)}' for key, item in items)} }}"
        case _:
            raise TypeError(f"{type(value).__name__} has no place in a registry entry")


def _table(name: str, lines: list[str]) -> str:
    return "\n".join([f"[{name}]", *lines, ""])


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml(name)
