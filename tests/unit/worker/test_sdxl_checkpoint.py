"""An SDXL checkpoint in one file: its parts are the diffusers layout, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from service.errors import ConfigurationError
from tests import original_layout
from tests.tiny_sdxl import LAYERS, save_sdxl
from worker.adding.configs import STANDARD, checkpoint_configs
from worker.adding.weights_file import WeightsFile
from worker.networks.convert import CLASSES, convert_checkpoint, diffusers_names
from worker.networks.network_classes import empty_network

NAMES = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_sdxl(folder)
    return folder


def written(file: Path, weights: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> WeightsFile:
    cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights.items()}
    save_file({key: value.contiguous() for key, value in cast.items()}, file)
    return WeightsFile.read(file)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_its_parts_are_the_diffusers_layout_bit_for_bit(model: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    file = written(tmp_path / "xl.safetensors", original_layout.sdxl_checkpoint(model, LAYERS), dtype)
    configs = checkpoint_configs(file, model, None)
    targets = {name: tmp_path / name for name in (*NAMES, "scheduler")}
    convert_checkpoint(file.path, targets, configs, file.prefixes)
    for name in NAMES:
        found, expected = original_layout.read(tmp_path / name), original_layout.read(model / name)
        assert found.keys() == expected.keys(), name
        assert all(torch.equal(found[key], expected[key].to(dtype)) for key in found), name
    scheduler = "scheduler/scheduler_config.json"
    assert json.loads((tmp_path / scheduler).read_text()) == json.loads((model / scheduler).read_text())


def test_fine_tune_that_predicts_v_says_so_itself(model: Path, tmp_path: Path) -> None:
    weights = original_layout.sdxl_checkpoint(model, LAYERS)
    file = written(tmp_path / "v.safetensors", weights | {"v_pred": torch.zeros(0)})
    assert checkpoint_configs(file, model, None)["scheduler"]["prediction_type"] == "v_prediction"
    assert checkpoint_configs(file, model, "epsilon")["scheduler"]["prediction_type"] == "epsilon"


def test_what_does_not_fit_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    weights = original_layout.sdxl_checkpoint(model, LAYERS)
    projection = "conditioner.embedders.1.model.text_projection"
    for changed, said in (
        ({key: value for key, value in weights.items() if key != projection}, "the text_encoder_2 of .* lacks 1 weig"),
        (weights | {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(3, 3)}, "the unet of .* another shape"),
    ):
        file = written(tmp_path / "xl.safetensors", changed)
        folder = tmp_path / said[:12]
        with pytest.raises(ConfigurationError, match=said):
            convert_checkpoint(
                file.path, {name: folder / name for name in NAMES}, checkpoint_configs(file, model, None), file.prefixes
            )


def test_standard_configs_and_names_are_those_of_sdxl() -> None:
    """Numbers of weights of the released networks, and all their names; on torch's meta device."""
    counts = {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    }
    with torch.device("meta"):
        networks = {name: empty_network(CLASSES[name], dict(STANDARD[2048][name])) for name in NAMES}
    assert {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()} == counts
    unet = networks["unet"].state_dict()
    weights = {f"model.diffusion_model.{key}": value for key, value in original_layout.unet(unet, LAYERS).items()}
    found = diffusers_names("unet", networks["unet"], weights)
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in unet.items()}
