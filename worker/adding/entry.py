"""The registry entry of a new model: its components, and the defaults of its family's bundled entry."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from service.catalog.family_components import SPARSE_CONTROL, Family
from service.catalog.model_entry import ModelEntry
from service.catalog.weight_files import Component, Source
from service.errors import ConfigurationError
from service.jobs.context_windows import ContextWindows
from service.settings import MODELS_FILE
from worker.adding.configs import read_json
from worker.adding.layout import Part

BUNDLED: dict[Family, str] = {
    "animatediff": "animatediff",
    "animatediff-sdxl": "animatediff-sdxl",
    "modelscope": "modelscope",
    "videocrafter": "videocrafter2",
    "wan": "wan-1.3b",
    "cogvideox": "cogvideox-2b",
}
# What describes the bundled entry's weights, not its family.
ADAPTERS = {"loras", "selectable_loras", "textual_inversions"}
OWN = {"family", "path", "components", "aliases", "created", "description", "licence", *ADAPTERS}
WITH_POSITIONS = ("motion_adapter", SPARSE_CONTROL)  # components that number the frames

Raw = dict[str, Any]


def draft(
    name: str,
    family: Family,
    parts: Mapping[str, Part],
    adapters: Mapping[str, list[dict[str, Any]]],
    changes: Mapping[str, Any],
    origins: Iterable[Component] = (),
) -> tuple[Raw, dict[str, Source]]:
    """The entry and its sources.

    Args:
        changes: keys that replace the family's defaults.
        origins: files of a hub that are converted: no component, but a source, so that `remove` finds them.
    """
    bundled = tomllib.loads(MODELS_FILE.read_text("utf-8"))["models"][BUNDLED[family]]
    defaults = {key: value for key, value in bundled.items() if key not in OWN}
    sources: dict[str, Source] = {}

    def place(source: Source, inside: str) -> str:
        key = next((key for key, known in sources.items() if known == source), f"{name}.{len(sources) + 1}")
        sources[key] = source
        if source.folder is not None and not _is_text(str(source.folder)):
            raise ConfigurationError(f"{str(source.folder)!a} is not UTF-8, as a models file is; rename the folder")
        return f"{key}/{inside}" if inside else key

    raw: Raw = {"family": family, "created": int(time.time()), **defaults, **changes}
    raw["components"] = {part: place(*where) for part, where in parts.items()}
    for kind, files in adapters.items():
        located = [{**file, "file": place(*file["file"])} for file in files]
        raw |= {kind: located} if located else {}
    for origin in origins:
        place(origin.source, "")
    return raw, sources


def tables(sources: Mapping[str, Source]) -> dict[str, Raw]:
    """Sources as they are written into a models file."""
    return {key: source.model_dump(mode="json", exclude_defaults=True) for key, source in sources.items()}


def fit_limits(raw: Raw, entry: ModelEntry) -> Raw:
    """The entry within what its networks take: frames of the motion modules, tokens of the text encoder."""
    fitted = dict(raw)
    if frames := [n for part in WITH_POSITIONS if (n := _number(entry, part, "motion_max_seq_length"))]:
        fitted |= _fit_frames(raw, entry.context_windows, min(frames))
    tokens = _number(entry, "text_encoder", "max_position_embeddings")
    if tokens and "max_prompt_tokens" in raw:
        fitted["max_prompt_tokens"] = min(raw["max_prompt_tokens"], tokens)
    return fitted


def _fit_frames(raw: Raw, windows: ContextWindows | None, longest: int) -> Raw:
    """The keys that change. With context windows a clip may be of any length, and its windows must fit."""
    if windows is None:
        return {"num_frames": {key: min(value, longest) for key, value in raw["num_frames"].items()}}
    limits = {"length": min(windows.length, longest), "stride": min(windows.stride, longest)}
    return {"context_windows": raw["context_windows"] | limits}


def _is_text(path: str) -> bool:
    return path.encode("utf-8", "replace").decode() == path


def _number(entry: ModelEntry, name: str, key: str) -> int | None:
    component = entry.all_components.get(name)
    file = component.path / "config.json" if component and component.path else Path()
    value = read_json(file).get(key) if file.is_file() else None
    return value if isinstance(value, int) and value > 0 else None
