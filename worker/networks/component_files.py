"""The files of a component on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from service.catalog.weight_files import Component
from service.errors import ConfigurationError


def component_folder(component: Component) -> Path:
    if component.path is None:
        raise ConfigurationError(f"{component.name} has not been fetched")
    return component.path


def read_config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "config.json")


def read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as e:
        raise ConfigurationError(f"{file} cannot be read: {e}") from e
