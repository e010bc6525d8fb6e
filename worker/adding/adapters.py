"""Entries of the LoRAs that `ivmix models add` is given for requests to choose."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from service.catalog.family_components import Family, has_motion_adapter
from service.errors import ConfigurationError
from service.jobs.lora_choice import NAME
from worker.adding.layout import Part
from worker.adding.weights_file import WeightsFile

SCALE = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_MOTION = "motion_modules"


def named_lora(spec: str) -> tuple[str | None, str]:
    """The name and the file of [NAME=]FILE[:SCALE]. Raises ConfigurationError for a name that requests cannot use."""
    name, equals, file = spec.partition("=")
    if not equals or "/" in name or Path(spec).expanduser().exists():  # a file with = in its name or its folder's
        return None, spec
    if not re.fullmatch(NAME, name):
        raise ConfigurationError(f"'{name}' cannot be a LoRA's name: 1 to 64 letters, digits and _ . - are")
    return name, file


def selectable_lora(
    name: str | None, file: WeightsFile, part: Part, scale: str | None, family: Family
) -> dict[str, Any]:
    """Its table in the models file. Without a name it has that of its file; `on` is what its weights are for.

    AnimateDiff's two models are of one kind, so that a LoRA fits both; those of other families are not.
    """
    stem = Path(part.inside).stem
    name = name or re.sub(r"[^A-Za-z0-9_.-]+", "-", stem)[:64].strip("-") or "lora"
    motion = [key for key in file.shapes if _MOTION in key]
    on = ["image", "video"] if motion or has_motion_adapter(family) else ["image"]
    if len(motion) == len(file.shapes):
        on = ["video"]
    return {"name": name, "file": part, "on": on, **({"scale": float(scale)} if scale else {})}
