"""How the components of a model get into memory: once, shared, several at a time."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNetMotionModel
from torch import nn

from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.catalog.weight_files import file_sha256
from service.errors import ConfigurationError
from tests.tiny_models import ENTRY, animatediff_without_image_parts, write_entry
from worker.networks.assembly import CPU, assemble, load_components
from worker.networks.component_loader import load_component

DEMO = ModelRegistry.load().get("demo").path


def pinned_demo(folder: Path, **sha256: str) -> ModelEntry:
    """The demo's files, each with its SHA-256, or another one for the configuration of a component."""
    assert DEMO is not None
    names = sorted(path.name for path in DEMO.iterdir() if path.is_dir())
    files = {str(path.relative_to(DEMO)): file_sha256(path) for name in names for path in (DEMO / name).iterdir()}
    files |= {f"{name}/config.json": value for name, value in sha256.items()}
    lines = ["[models.tiny]", ENTRY.format(family="animatediff").replace('path = "."', ""), "[models.tiny.components]"]
    lines += [f'{name} = "files/{name}"' for name in names]
    lines += ["[sources.files]", f"folder = {json.dumps(str(DEMO))}", "[sources.files.sha256]"]
    lines += [f'"{file}" = "{value}"' for file, value in files.items()]
    registry = folder / "models.toml"
    registry.write_text("\n".join(lines))
    return ModelRegistry.load(registry).get("tiny")


def load_all(entry: ModelEntry) -> dict[str, Any]:
    return load_components(entry, torch.float32, lambda _name: CPU)


def bytes_read() -> int:
    """By system calls of this process so far. Files that are mapped into memory are not among them."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_motion_unet_is_the_one_of_diffusers_without_a_copy_of_a_weight(tmp_path: Path) -> None:
    entry = write_entry(animatediff_without_image_parts(tmp_path), "animatediff")
    parts = assemble(entry, torch.float32)
    base, adapter = (load_component(entry, name, torch.float32) for name in ("unet", "motion_adapter"))
    expected: Any = UNetMotionModel.from_unet2d(base, adapter)
    found = parts.video_unet.state_dict()
    assert list(found) == list(expected.state_dict())
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())
    assert parts.video_unet.config == expected.config
    assert not any(x.is_meta for x in (*parts.video_unet.parameters(), *parts.video_unet.buffers()))
    shared = {x.data_ptr() for x in parts.image_unet.parameters()}
    assert shared <= {x.data_ptr() for x in parts.video_unet.parameters()}


def test_file_with_a_known_hash_is_read_for_it_once_and_never_again(tmp_path: Path) -> None:
    entry = pinned_demo(tmp_path)
    load_all(entry)  # and what is imported then
    before = bytes_read()
    parts = load_all(entry)
    size = sum(file.stat().st_size for file in Path(str(DEMO)).rglob("*.safetensors") if file.parent != DEMO)
    assert size < bytes_read() - before < 1.2 * size, "the rest are small files; weights are mapped"
    assert not any(x.is_meta for part in parts.values() if isinstance(part, nn.Module) for x in part.parameters())


def test_first_component_with_another_hash_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"unet/config.json has sha256 \w{64}, expected 0{64}"):
        load_all(pinned_demo(tmp_path, vae="1" * 64, unet="0" * 64))


def test_loading_in_threads_leaves_torch_and_the_loggers_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers and accelerate replace functions while they build a network, and put back what they found."""
    monkeypatch.setattr("worker.networks.assembly.MAX_LOADERS", 8)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    entry = write_entry(animatediff_without_image_parts(tmp_path), "animatediff")
    before = nn.Module.register_parameter, nn.init.kaiming_uniform_, logging.getLogger("diffusers").level
    for _ in range(5):
        for part in load_all(entry).values():
            assert not isinstance(part, nn.Module) or not any(x.is_meta for x in part.state_dict().values())
    assert (nn.Module.register_parameter, nn.init.kaiming_uniform_, logging.getLogger("diffusers").level) == before
