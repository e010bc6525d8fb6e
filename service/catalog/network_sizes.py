"""How many numbers each network of a model has, and its config: from its files, of released ones also without them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

from service.catalog.model_entry import ModelEntry
from service.catalog.released_networks import PLACES, RELEASED
from service.catalog.weight_files import Component

MAX_HEADER_BYTES = 100_000_000
WITHOUT_CONFIG = ("text_encoder", "image_encoder")  # no formula reads theirs
ALIASES = {"encoder.embed_tokens.weight": "shared.weight"}  # T5's words: one tensor, which some files hold twice


@dataclass(frozen=True)
class NetworkSize:
    numbers: int
    config: dict[str, Any]


def sizes_of(entry: ModelEntry) -> dict[str, NetworkSize] | None:
    """By component; None if one is neither on this machine nor a released one that is known here.

    LoRAs and textual inversions are left out: they are small, and LoRAs are added to the weights of networks.
    """
    found: dict[str, NetworkSize] = {}
    for name, component in entry.all_components.items():
        if component.has_weights and not component.is_file:
            size = _from_files(component) if component.is_available else _released(component)
            if size is None:
                return None
            found[name] = size
    return found


def _released(component: Component) -> NetworkSize | None:
    place = "/".join(filter(None, (component.source.repo, component.inside)))
    return NetworkSize(*RELEASED[PLACES[place]]) if place in PLACES else None


def _from_files(component: Component) -> NetworkSize | None:
    """None if they cannot be read: loading and `ivmix models verify` say what is wrong."""
    assert component.path is not None
    prefix = f"{component.inside}/" if component.inside else ""
    try:
        files = [file for file in component.path.glob("*.safetensors") if component.has_file(prefix + file.name)]
        config = {} if component.kind in WITHOUT_CONFIG else _config(component.path)
        return NetworkSize(_count(files), config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _count(files: list[Path]) -> int:
    """Numbers in safetensors files, from their headers."""
    shapes: dict[str, list[int]] = {}
    for file in files:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(min(length, MAX_HEADER_BYTES)))
        shapes |= {name: value["shape"] for name, value in header.items() if name != "__metadata__"}
    return sum(prod(shape) for name, shape in shapes.items() if ALIASES.get(name) not in shapes)


def _config(folder: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads((folder / "config.json").read_text("utf-8")))
