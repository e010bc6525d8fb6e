"""`clip_skip`: how many of a text encoder's last layers are left out, and how many can be. Without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from service.catalog.weight_files import Component
from service.errors import InvalidParameter

MEANING = "1 is the last layer but one, which other user interfaces call Clip skip 2"


def most_clip_skip(components: Mapping[str, Component], *, is_sdxl: bool) -> int | None:
    """The largest `clip_skip` that all text encoders of a model allow; None if no config is on this machine.

    A CLIP of n layers gives n + 1 states, that before the first layer included. SDXL reads the last but one as it is.
    """
    encoders = (component for component in components.values() if component.kind == "text_encoder")
    layers = [count for encoder in encoders if (count := _layers(encoder)) is not None]
    return max(min(layers) - is_sdxl, 0) if layers else None


def check_clip_skip(clip_skip: int, most: int | None) -> None:
    """Raises InvalidParameter if the text encoders have too few layers."""
    if most is not None and clip_skip > most:
        message = f"clip_skip={clip_skip} is above {most}, what the model's text encoders have layers for; {MEANING}."
        raise InvalidParameter("clip_skip", message)


def _layers(encoder: Component) -> int | None:
    """As the config says; None where it does not, as in files of another layout: the worker knows it then."""
    try:
        found = None if encoder.path is None else json.loads((encoder.path / "config.json").read_text())
    except (OSError, ValueError):
        return None
    count = cast("dict[str, Any]", found).get("num_hidden_layers") if isinstance(found, dict) else None
    return count if isinstance(count, int) else None
