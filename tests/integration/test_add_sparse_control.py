"""`ivmix models add --sparse-control`: a SparseCtrl network in a diffusers folder and in one file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from service.jobs.context_windows import ContextWindows
from tests import original_layout
from tests.adding import Machine, new_machine
from tests.tiny_sdxl import save_sdxl
from tests.tiny_sparse_control import save_control, save_controlled
from worker.adding.entry import fit_limits

SIZE = ("--size", "32x32")
NAME = "sparse_control"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sparse") / "model"
    save_controlled(folder)
    (folder / "models.toml").unlink()
    (folder / NAME).rename(folder.parent / NAME)
    original = original_layout.sparse_control(original_layout.read(folder.parent / NAME))
    save_file(original, folder.parent / "rgb.safetensors")
    return folder


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with new_machine(tmp_path, monkeypatch) as machine:
        yield machine


def test_folder_is_used_where_it_is_and_a_file_is_converted_to_the_same(machine: Machine, model: Path) -> None:
    options = ("--from", model, *SIZE)
    assert not machine.add("without", *options).count(NAME)
    said = machine.add("folder", *options, "--sparse-control", model.parent / NAME)
    assert f"{NAME}: OK (names, shapes and values of all weights)" in said
    machine.add("file", *options, "--sparse-control", model.parent / "rgb.safetensors", "--config", model.parent)
    registry = machine.registry()
    assert [registry.get(name).has_sparse_control for name in ("without", "folder", "file")] == [False, True, True]
    expected = original_layout.read(model.parent / NAME)
    converted = registry.get("file").all_components[NAME].path
    assert converted is not None
    assert converted != registry.get("folder").all_components[NAME].path == model.parent / NAME
    found = original_layout.read(converted)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_config_is_read_from_the_shapes(machine: Machine, model: Path) -> None:
    """Heads and norms are not in them: those of Stable Diffusion 1 do not fit the tiny network."""
    file = model.parent / "rgb.safetensors"
    machine.refused(
        "rgb.safetensors cannot be converted: .*num_groups", "m", "--from", model, *SIZE, "--sparse-control", file
    )


def test_networks_that_read_something_else_are_refused(machine: Machine, model: Path, tmp_path: Path) -> None:
    options = ("m", "--from", model, *SIZE, "--sparse-control")
    save_control(tmp_path / "scribble", use_simplified_condition_embedding=False, conditioning_channels=3)
    machine.refused("use_simplified_condition_embedding=false is not supported", *options, tmp_path / "scribble")
    scribble = original_layout.sparse_control(original_layout.read(tmp_path / "scribble"))
    save_file(scribble, tmp_path / "scribble.safetensors")
    machine.refused("is a SparseCtrl for sketches", *options, tmp_path / "scribble.safetensors")
    machine.refused("must be of class SparseControlNetModel", *options, model / "motion_adapter")
    rgb = model.parent / "rgb.safetensors"
    machine.refused("is a SparseCtrl, not a motion modules", *options[:-1], "--motion-adapter", rgb)
    save_sdxl(tmp_path)
    options = ("m", "--from", tmp_path, "--motion-adapter", tmp_path / "motion_adapter", *SIZE, "--sparse-control")
    machine.refused("family animatediff-sdxl takes no sparse_control; leave out", *options, model.parent / NAME)


def test_clips_are_no_longer_than_it_numbers_frames(machine: Machine, model: Path, tmp_path: Path) -> None:
    save_control(tmp_path / NAME, motion_max_seq_length=12)
    machine.add("m", "--from", model, *SIZE, "--sparse-control", tmp_path / NAME)
    assert machine.registry().get("m").num_frames.max == 12
    assert json.loads((tmp_path / NAME / "config.json").read_text())["motion_max_seq_length"] == 12
    longer = {"num_frames": {"default": 16, "min": 8, "max": 64}, "context_windows": {"stride": 14}}
    entry = machine.registry().get("m").model_copy(update={"context_windows": ContextWindows(stride=14)})
    fitted = fit_limits(longer, entry)
    assert fitted == longer | {"context_windows": {"length": 12, "stride": 12}}, "windows fit, clips may be longer"
