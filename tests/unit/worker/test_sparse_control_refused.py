"""SparseCtrl networks that do not fit are refused by `verify` and by loading, with the same sentence."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import MotionAdapter, SparseControlNetModel, UNet2DConditionModel, UNetMotionModel

from service.catalog.registry import ModelRegistry
from service.errors import ConfigurationError
from tests.broken_models import UNET, Broken, broken_model, config, one_value, weights
from tests.tiny_sparse_control import save_control, save_controlled
from tests.unit.worker.test_broken_models import check, refusal_of_both
from worker.adding.configs import STANDARD
from worker.adding.sparse_control_config import sparse_control_config
from worker.adding.weights_file import SPARSE, WeightsFile
from worker.networks.assembly import fit_together
from worker.networks.component_loader import load_component
from worker.networks.network_classes import empty_network, errors_only
from worker.networks.sparse_control_checks import control_mismatch

NAME = "sparse_control"
FILE = f"{NAME}/{UNET}.safetensors"
RGB = "use SparseCtrl RGB, such as guoyww/animatediff-sparsectrl-rgb"
# config.json of guoyww/animatediff-sparsectrl-rgb, without its keys that are null or of other networks.
HUB: dict[str, Any] = {
    "_class_name": "SparseControlNetModel",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "concat_conditioning_mask": True,
    "conditioning_channels": 4,
    "controlnet_conditioning_channel_order": "rgb",
    "cross_attention_dim": 768,
    "down_block_types": [*["CrossAttnDownBlockMotion"] * 3, "DownBlockMotion"],
    "global_pool_conditions": False,
    "layers_per_block": 2,
    "motion_max_seq_length": 32,
    "use_simplified_condition_embedding": True,
}


def other(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        shutil.rmtree(folder / NAME)
        save_control(folder / NAME, **changes)

    return change


CASES = {
    "no mask": Broken(other(concat_conditioning_mask=False)),
    "NaN": Broken(weights(NAME, one_value("controlnet_mid_block.bias", float("nan"))), (FILE, "controlnet_mid_block")),
    "weight lacks": Broken(
        weights(NAME, lambda w: {k: v for k, v in w.items() if "mid_block" not in k}),
        (f"{NAME} does not fit its config.json: lacks controlnet_mid_block.bias",),
    ),
    "other class": Broken(config(NAME, _class_name="ControlNetModel"), ("must be a SparseControlNetModel",)),
    "scribble": Broken(
        other(use_simplified_condition_embedding=False, conditioning_channels=3),
        (f"{NAME}/config.json: use_simplified_condition_embedding=false is not supported", "sketches", RGB),
    ),
    "pixels": Broken(other(conditioning_channels=3), ("sparse_control reads 3 channels of a frame", "has 4", RGB)),
    "pooled": Broken(config(NAME, global_pool_conditions=True), ("global_pool_conditions=true", RGB)),
    "order": Broken(config(NAME, controlnet_conditioning_channel_order="gbr"), ("'gbr' must be one of rgb, bgr",)),
    "text of SDXL": Broken(other(cross_attention_dim=48), ("reads embeddings of dim 48, the video model of dim 32",)),
    "wider": Broken(other(block_out_channels=[16, 48]), ("other blocks", "[16, 48] wide", "instead of [16, 32]")),
    "deeper": Broken(other(layers_per_block=2), ("other blocks than the video model", "layers_per_block=2")),
    "fewer frames": Broken(other(motion_max_seq_length=6), ("num_frames.max=8", "takes 6 frames; write 6 or less")),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sparse") / "model"
    assert refusal_of_both(save_controlled(folder)) is None
    return folder


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", CASES)
def test_network_is_refused_by_name_and_with_the_way_out(good: Path, tmp_path: Path, name: str) -> None:
    check(CASES[name], refusal_of_both(broken_model(good, tmp_path / "model", CASES[name])))


def test_checking_needs_no_memory_for_the_weights(good: Path) -> None:
    entry = ModelRegistry.load(good / "models.toml").entry("tiny")
    parts = {name: load_component(entry, name, torch.float32, only_check=True) for name in entry.all_components}
    control: Any = fit_together(entry, parts).sparse_control
    assert all(weight.is_meta for weight in control.state_dict().values())


def test_other_families_take_none(good: Path) -> None:
    lines = (good / "models.toml").read_text().replace('"animatediff"', '"animatediff-sdxl"')
    file = good.parent / "sdxl.toml"
    file.write_text(f'{lines}\ncomponents = {{ {NAME} = "x" }}\n[sources.x]\nfolder = "."\n')
    with pytest.raises(ConfigurationError, match=f"components has unknown {NAME}; animatediff-sdxl takes"):
        ModelRegistry.load(file)


@errors_only("diffusers")
def test_public_network_fits_stable_diffusion_1_and_is_described_by_its_shapes() -> None:
    with torch.device("meta"):
        control: Any = empty_network(SparseControlNetModel, HUB)
        base: Any = empty_network(UNet2DConditionModel, STANDARD[768]["unet"])
        video: Any = UNetMotionModel.from_unet2d(base, MotionAdapter(use_motion_mid_block=False))
    entry: Any = SimpleNamespace(id="m", num_frames=SimpleNamespace(max=32), context_windows=None)
    vae: Any = SimpleNamespace(config=SimpleNamespace(latent_channels=4))
    assert control_mismatch(entry, control, video, vae) is None
    size = sum(2 * weight.numel() for weight in control.state_dict().values())
    assert round(size / 1e6) == 994  # MB, as the hub's page says of the file in float16
    shapes = {key: tuple(value.shape) for key, value in control.state_dict().items()}
    file = WeightsFile(Path("x"), 1, shapes, frozenset({"F16"}))
    assert (file.require(SPARSE), file.is_sdxl) == (file, False)
    found = sparse_control_config(file, None)
    assert found == {key: HUB[key] for key in found}
