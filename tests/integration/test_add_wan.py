"""`ivmix models add` with folders of video transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.catalog.registry import ModelRegistry
from tests.adding import Machine, new_machine
from tests.tiny_wan import save_transformer, save_wan
from worker.verify import verify


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    save_wan(folder)
    (folder / "models.toml").unlink()
    write_index(folder)
    return folder


def write_index(folder: Path, **changes: Any) -> None:
    index = {"_class_name": "WanPipeline", "boundary_ratio": None, "expand_timesteps": False, **changes}
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with new_machine(tmp_path, monkeypatch) as machine:
        yield machine


def test_diffusers_folder_becomes_a_model_with_the_defaults_of_the_family(machine: Machine, folder: Path) -> None:
    assert "mine is added (family wan)" in machine.add("mine", "--from", folder, "--size", "48x32")
    entry, bundled = machine.registry().get("mine"), ModelRegistry.load().entry("wan-1.3b")
    assert entry.missing == []
    assert set(entry.all_components) == {"tokenizer", "text_encoder", "vae", "transformer", "scheduler"}
    assert (entry.sampler, entry.num_frames, entry.dtype) == (bundled.sampler, bundled.num_frames, "bfloat16")
    assert entry.sampler.name == "ddim"
    assert {line.split(":")[1].split(" (")[0] for line in verify(entry)} == {" OK"}


def test_two_experts_bring_their_boundary(machine: Machine, folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "a14b"
    shutil.copytree(folder, copied)
    save_transformer(copied / "transformer_2")
    write_index(copied, boundary_ratio=0.875)
    machine.add("experts", "--from", copied, "--size", "48x32")
    entry = machine.registry().get("experts")
    assert (entry.boundary_ratio, entry.has_second_expert) == (0.875, True)


def test_index_says_how_a_first_frame_is_given(machine: Machine, folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "5b"
    shutil.copytree(folder, copied)
    write_index(copied, expand_timesteps=True)
    machine.add("tokens", "--from", copied, "--size", "48x32")
    save_transformer(copied / "transformer", in_channels=36)
    write_index(copied, _class_name="WanImageToVideoPipeline")
    machine.add("channels", "--from", copied, "--size", "48x32")
    registry = machine.registry()
    assert [registry.get(name).keeps_first_frame_by for name in ("tokens", "channels")] == ["tokens", "channels"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"_class_name": "WanVACEPipeline"}, "takes a clip and a mask; use the text-to-video version"),
        ({"_class_name": "WanAnimatePipeline"}, "takes a pose and a face; use the text-to-video version"),
    ],
)
def test_other_pipelines_of_the_family_are_refused_with_the_reason(
    machine: Machine, folder: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    copied = tmp_path / "other"
    shutil.copytree(folder, copied)
    write_index(copied, **changes)
    machine.refused(reason, "mine", "--from", copied)
