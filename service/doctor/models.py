"""Checks of the model registry and of the files of the models that are offered. Reads no weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.catalog.weight_files import Component
from service.doctor.finding import Finding, Findings, ok, problem, warning
from service.errors import ConfigurationError, ServiceError

HASHED_BYTES = 64 * 2**20  # of one model: more would take seconds; `ivmix models verify` reads everything
MAX_HEADER_BYTES = 100 * 2**20  # as the safetensors library allows


def check_models(registry: ModelRegistry) -> Findings:
    if not registry.ids():
        names = ", ".join(registry.known)
        yield problem(
            "models", f"no model is offered: the weights of none are here ({names})", "ivmix models fetch NAME"
        )
        return
    for name in registry.ids():
        yield check_model(registry.get(name))


def check_model(entry: ModelEntry) -> Finding:
    if entry.missing:
        message = f"{entry.id}: {', '.join(entry.missing)} missing on this machine"
        advice = f"run `ivmix models fetch {entry.id}`, unless workers elsewhere have it"
        return warning("models", message, advice)
    budget, size = HASHED_BYTES, 0
    for component in entry.all_components.values():
        try:
            for file in _files(component):
                size += file.stat().st_size
                if file.suffix == ".safetensors":
                    check_safetensors(file)
            known = [name for name in component.sha256 if component.root is not None]
            budget -= sum((component.root or Path()).joinpath(name).stat().st_size for name in known)
            if budget >= 0:
                component.verify()
        except (OSError, ServiceError) as e:
            return problem("models", f"{entry.id}: {component.name}: {e}", f"run `ivmix models verify {entry.id}`")
    return ok("models", f"{entry.id}: {len(entry.all_components)} components, {size / 1e6:.0f} MB")


def check_safetensors(file: Path) -> None:
    """Compare the size of a file with what its header says. Raises ConfigurationError if it is truncated or foreign."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        size = os.fstat(stream.fileno()).st_size
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ConfigurationError(f"{file} is no safetensors file, or is truncated; fetch it again")
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as e:
            raise ConfigurationError(f"{file} has a damaged header; fetch it again") from e
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ConfigurationError(f"{file} has {size} bytes instead of {expected}; fetch it again")


def _files(component: Component) -> Iterator[Path]:
    if component.path is None:
        return
    if component.path.is_file():
        yield component.path
        return
    yield from (path for path in sorted(component.path.iterdir()) if path.is_file())
