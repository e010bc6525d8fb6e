"""Checks a model's files before they are loaded: presence, SHA-256, names and shapes of all weights."""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from service.catalog.model_entry import ModelEntry
from service.catalog.weight_files import PICKLE_SUFFIXES, Component
from service.errors import ConfigurationError
from worker.networks.component_files import component_folder, read_config
from worker.networks.network_classes import empty_network, errors_only, network_class

Shapes = dict[str, tuple[int, ...]]

# Regular expression of a weight's name in old checkpoints -> its current name.
RENAMED_WEIGHTS = (
    (r"^text_model\.", ""),
    (r"(\.attentions\.\d+)\.query\.", r"\1.to_q."),
    (r"(\.attentions\.\d+)\.key\.", r"\1.to_k."),
    (r"(\.attentions\.\d+)\.value\.", r"\1.to_v."),
    (r"(\.attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
)
NOT_WEIGHTS = re.compile(r"\.position_ids$")
MAX_NAMES_SHOWN = 3


class WeightsMismatch(ConfigurationError):
    """Names or shapes of a component's weights differ from its configuration."""


def check_files(entry: ModelEntry) -> None:
    """Raises ConfigurationError if a file is missing, is a pickle, or differs from its known SHA-256."""
    if missing := entry.missing:
        where = f"model folder {entry.path} lacks" if entry.path else f"model {entry.id} lacks"
        raise ConfigurationError(f"{where} {', '.join(missing)}; `ivmix models fetch {entry.id}` downloads hub files")
    components = entry.all_components.values()
    local = {entry.path, *(component.path for component in components if component.source.repo is None)}
    for folder in sorted(folder for folder in local if folder is not None and folder.is_dir()):
        pickles = [str(f.relative_to(folder)) for f in sorted(folder.rglob("*")) if f.suffix in PICKLE_SUFFIXES]
        if pickles:
            raise ConfigurationError(f"model folder {folder} holds {', '.join(pickles)}; only safetensors are loaded")
    for component in components:
        component.verify()


def check_shapes(entry: ModelEntry, name: str) -> None:
    """Compare a component's weights with its configuration, reading headers only. Raises WeightsMismatch."""
    component = entry.all_components[name]
    expected, buffers = _expected_shapes(entry, name)
    found = _stored_shapes(component)
    differences = {
        "lacks": sorted(set(expected) - set(found) - buffers),
        "has unexpected": sorted(set(found) - set(expected)),
        "has with another shape": sorted(k for k in set(found) & set(expected) if found[k] != expected[k]),
    }
    if errors := [f"{what} {_abbreviated(names)}" for what, names in differences.items() if names]:
        raise WeightsMismatch(f"{component.path} does not fit its config.json: {'; '.join(errors)}")


def _abbreviated(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return ", ".join(names[:MAX_NAMES_SHOWN]) + more


@errors_only("diffusers")
def _expected_shapes(entry: ModelEntry, name: str) -> tuple[Shapes, set[str]]:
    """Shapes by name, and the names of buffers, which need not be stored."""
    config = read_config(component_folder(entry.all_components[name]))
    with torch.device("meta"):
        empty = empty_network(network_class(entry, name), config)
    shapes = {key: tuple(value.shape) for key, value in empty.state_dict().items()}
    return shapes, {key for key, _ in empty.named_buffers()}


def _stored_shapes(component: Component) -> Shapes:
    shapes: Shapes = {}
    for file in _weight_files(component):
        try:
            with _open(file) as weights:
                for key in weights.keys():  # noqa: SIM118  not a dict
                    shapes[_current_name(key)] = tuple(weights.get_slice(key).get_shape())
        except (OSError, SafetensorError) as e:
            raise ConfigurationError(f"{file} is not a safetensors file: {e}") from e
    return {key: shape for key, shape in shapes.items() if not NOT_WEIGHTS.search(key)}


def _open(file: Path) -> Any:  # safetensors has no types for it
    return safe_open(file, "pt")


def _current_name(name: str) -> str:
    for old, new in RENAMED_WEIGHTS:
        name = re.sub(old, new, name)
    return name


def _weight_files(component: Component) -> list[Path]:
    assert component.root is not None
    folder = component_folder(component)
    names = sorted(file.relative_to(component.root).as_posix() for file in folder.glob("*.safetensors"))
    if files := [component.root / name for name in names if component.has_file(name)]:
        return files
    variant = f" of variant {component.source.variant}" if component.source.variant else ""
    raise ConfigurationError(f"{folder} has no safetensors{variant}; pickles (.bin, .ckpt) are not loaded")
