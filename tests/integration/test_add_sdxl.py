"""`ivmix models add` with SDXL: from diffusers folders and from one file, and the real engine with what it made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests import original_layout
from tests.adding import Machine, new_machine
from tests.tiny_models import save_model
from tests.tiny_sdxl import FAMILY, LAYERS, save_sdxl

SIZE = ("--size", "32x32")
SHARED = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "unet", "scheduler")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `save_sdxl`'s pair: pipelines `base` and `fine-tune`, the adapter, and the same in original files."""
    root = tmp_path_factory.mktemp("sdxl")
    (root / "pair").mkdir()
    save_sdxl(root / "pair")
    for name in SHARED:
        shutil.copytree(root / "pair" / name, root / "base" / name)
        shutil.copytree(root / "pair" / f"image_{name}", root / "fine-tune" / name)
    for name in ("base", "fine-tune"):
        shutil.copytree(root / "pair" / "vae", root / name / "vae")
        index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": name == "fine-tune"}
        (root / name / "model_index.json").write_text(json.dumps(index))
        save_file(original_layout.sdxl_checkpoint(root / name, LAYERS), root / f"{name}.safetensors")
    adapter = original_layout.read(root / "pair" / "motion_adapter")
    save_file(original_layout.motion_modules(adapter), root / "mm_sdxl.safetensors")
    return root


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with new_machine(tmp_path, monkeypatch) as machine:
        yield machine


@pytest.mark.slow
def test_one_file_makes_the_clip_of_its_diffusers_folder(machine: Machine, folders: Path) -> None:
    machine.add(
        *("folder", "--from", folders / "base", "--motion-adapter", folders / "pair" / "motion_adapter"),
        *("--image-model", folders / "fine-tune", *SIZE),
    )
    machine.add(
        *("file", "--from", folders / "base.safetensors", "--motion-adapter", folders / "mm_sdxl.safetensors"),
        *("--image-model", folders / "fine-tune.safetensors", "--config", folders / "pair", *SIZE),
    )
    assert torch.equal(machine.frames("file"), machine.frames("folder"))
    folder, file = (machine.registry().get(name) for name in ("folder", "file"))
    assert (folder.family, file.family) == (FAMILY, FAMILY)
    assert folder.video_schedule == {"beta_schedule": "linear", "beta_end": 0.02}
    assert not folder.force_zeros_for_empty_prompt  # as its model_index.json says
    assert file.force_zeros_for_empty_prompt
    assert folder.all_components["image_unet"].path == folders / "fine-tune" / "unet"
    assert set(folder.all_components) == set(file.all_components)
    tokenizers = [file.all_components[f"tokenizer{end}"].path for end in ("", "_2")]
    padding = [json.loads((path / "tokenizer_config.json").read_text())["pad_token"] for path in tokenizers if path]
    assert padding == ["<|endoftext|>", "!"]


def test_what_does_not_belong_together_is_refused_by_name(machine: Machine, folders: Path, tmp_path: Path) -> None:
    checkpoint, adapter = folders / "base.safetensors", folders / "pair" / "motion_adapter"
    config = ("--config", folders / "pair", *SIZE)
    way_out = r"\(name it with --motion-adapter, such as guoyww/animatediff-motion-adapter-sdxl-beta\)"
    machine.refused(f"has no motion_adapter {way_out}", "m", "--from", checkpoint, *config)
    sd = tmp_path / "sd"
    save_model("animatediff", sd)
    save_file(original_layout.checkpoint(sd, layers=1), sd / "sd.safetensors")
    options = ("m", "--from", checkpoint, "--motion-adapter", adapter, *config)
    machine.refused("sd.safetensors is not of SDXL", *options, "--image-model", sd / "sd.safetensors")
    machine.refused(f"{sd} is not of SDXL", *options, "--image-model", sd)
    options = ("m", "--from", sd, "--motion-adapter", sd, *SIZE)
    machine.refused("base.safetensors is of SDXL", *options, "--image-model", checkpoint)
    machine.refused(f"{folders / 'base'} is of SDXL", *options, "--image-model", folders / "base")
    machine.refused("is of SDXL: .* those of family animatediff", "m", "--from", checkpoint, "--family", "animatediff")
    machine.refused("only family animatediff-sdxl makes a video", "m", "--from", checkpoint, "--family", "modelscope")
