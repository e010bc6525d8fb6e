"""What diffusers' converters make of original layouts is the diffusers layout, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, MotionAdapter
from safetensors.torch import save_file
from torch import Tensor

from service.errors import ConfigurationError
from tests import original_layout
from tests.tiny_models import save_model
from worker.adding.configs import STANDARD, checkpoint_configs, motion_config
from worker.adding.weights_file import WeightsFile
from worker.networks.convert import (
    CLASSES,
    PREFIXES,
    convert_checkpoint,
    convert_motion_modules,
    convert_vae,
    diffusers_names,
)
from worker.networks.network_classes import empty_network

NAMES = ("unet", "vae", "text_encoder")
VAE: dict[str, Any] = {
    "block_out_channels": [8, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "norm_num_groups": 4,
    "latent_channels": 4,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model("animatediff", folder)
    AutoencoderKL(**VAE).save_pretrained(folder / "vae")  # with attention, as real ones
    return folder


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [k for k in found if found[k].dtype != expected[k].dtype or not torch.equal(found[k], expected[k])]
    assert not different


def write(folder: Path, weights: dict[str, Tensor], dtype: torch.dtype | None = None) -> Path:
    file = folder / "original.safetensors"
    cast = {k: v.to(dtype) if dtype and v.is_floating_point() else v for k, v in weights.items()}
    save_file({key: value.contiguous() for key, value in cast.items()}, file)
    return file


def converted(file: Path, model: Path, target: Path) -> Path:
    configs = checkpoint_configs(WeightsFile.read(file), model, None)
    convert_checkpoint(file, {name: target / name for name in (*NAMES, "scheduler")}, configs)
    return target


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_checkpoint(model: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    weights = original_layout.checkpoint(model, layers=1) | {
        "model_ema.num_updates": torch.tensor(1, dtype=torch.int32)
    }
    found = converted(write(tmp_path, weights, dtype), model, tmp_path / "out")
    for name in NAMES:
        expected = {key: value.to(dtype) for key, value in original_layout.read(model / name).items()}
        assert_same(original_layout.read(found / name), expected)
    scheduler = "scheduler/scheduler_config.json"
    assert json.loads((found / scheduler).read_text()) == json.loads((model / scheduler).read_text())


def test_open_clip_text_encoder(model: Path, tmp_path: Path) -> None:
    text = original_layout.read(model / "text_encoder")
    unet = {
        f"model.diffusion_model.{k}": v
        for k, v in original_layout.unet(original_layout.read(model / "unet"), 1).items()
    }
    file = write(tmp_path, unet | original_layout.open_clip(text))
    configs = checkpoint_configs(WeightsFile.read(file), model, None)
    convert_checkpoint(file, {"text_encoder": tmp_path / "text_encoder"}, configs)
    assert_same(original_layout.read(tmp_path / "text_encoder"), text)


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
def test_vae(model: Path, tmp_path: Path, prefix: str) -> None:
    expected = original_layout.read(model / "vae")
    weights = {f"{prefix}{key}": value for key, value in original_layout.original_vae(expected).items()}
    convert_vae(write(tmp_path, weights | {"loss.logvar": torch.zeros(1)}), tmp_path / "vae", VAE)
    assert_same(original_layout.read(tmp_path / "vae"), expected)


@pytest.mark.parametrize(
    ("positions", "has_mid_block", "prefix"),
    [(24, False, "module."), (32, True, ""), (32, False, "")],
    ids=["mm_sd_v14", "mm_sd_v15_v2", "v3_sd15_mm"],
)
def test_motion_modules(tmp_path: Path, positions: int, has_mid_block: bool, prefix: str) -> None:
    """The config is derived: widths, layers, positions and mid block."""
    adapter = MotionAdapter((32, 32, 32, 64), motion_max_seq_length=positions, use_motion_mid_block=has_mid_block)
    adapter.save_pretrained(tmp_path / "expected")
    expected = original_layout.read(tmp_path / "expected")
    original = {prefix + key: value for key, value in original_layout.motion_modules(expected).items()}
    file = write(tmp_path, original)
    convert_motion_modules(file, tmp_path / "found", motion_config(WeightsFile.read(file), None))
    assert_same(original_layout.read(tmp_path / "found"), expected)
    assert (tmp_path / "found/config.json").read_text() == (tmp_path / "expected/config.json").read_text()
    convert_motion_modules(write(tmp_path, expected), tmp_path / "again", motion_config(WeightsFile.read(file), None))
    assert_same(original_layout.read(tmp_path / "again"), expected)  # in the diffusers layout already


def test_what_does_not_fit_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    weights = original_layout.checkpoint(model, layers=1)
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight"
    text = {key: value for key, value in weights.items() if not key.startswith("cond_stage_model.")}
    for changed, said in (
        ({k: v for k, v in weights.items() if k != name}, r"lacks 1 weights, such as down_blocks\.0\..*to_q\.weight"),
        (weights | {name: torch.zeros(3, 3)}, r"another shape 1 weights, such as down_blocks\.0\..*to_q\.weight"),
        (
            weights | {"model.diffusion_model.lora.up": torch.zeros(3)},
            r"unexpected 1 weights, such as model\.diff.*lora",
        ),
        (text, "has no text_encoder"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            converted(write(tmp_path, changed), model, tmp_path / f"out{len(changed)}{said[:3]}")


def test_other_positions_are_refused(tmp_path: Path) -> None:
    adapter = MotionAdapter((32, 32, 32, 32), use_motion_mid_block=False)
    weights = original_layout.motion_modules({key: value.clone() for key, value in adapter.state_dict().items()})
    learned = {key: value + 0.1 if key.endswith(".pe") else value for key, value in weights.items()}
    file = write(tmp_path, learned)
    with pytest.raises(ConfigurationError, match="sinusoidal"):
        convert_motion_modules(file, tmp_path / "found", motion_config(WeightsFile.read(file), None))


def test_standard_configs_and_names_are_those_of_stable_diffusion() -> None:
    """Numbers of weights of the released networks, and all their names; on torch's meta device."""
    counts = {
        768: {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
        1024: {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    }
    for width, expected in counts.items():
        with torch.device("meta"):
            networks = {name: empty_network(CLASSES[name], dict(STANDARD[width][name])) for name in NAMES}
        assert {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()} == expected
        weights = {name: network.state_dict() for name, network in networks.items()}
        prefix = "cond_stage_model.transformer.text_model."
        clip = {prefix + key: value for key, value in weights["text_encoder"].items()}
        original = {
            "unet": {PREFIXES["unet"] + key: value for key, value in original_layout.unet(weights["unet"], 2).items()},
            "vae": {PREFIXES["vae"] + k: v for k, v in original_layout.original_vae(weights["vae"]).items()},
            "text_encoder": clip if width == 768 else original_layout.open_clip(weights["text_encoder"]),
        }
        for name, network in networks.items():
            found = diffusers_names(name, network, original[name])
            found.pop("text_projection.weight", None)
            assert {key: value.shape for key, value in found.items()} == {k: v.shape for k, v in weights[name].items()}
