"""Folders that are no model, or not one that a family uses, are refused with the option that takes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.errors import ConfigurationError
from worker.adding.layout import Tree, guess_family, refuse_other_models

WEIGHTS = "diffusion_pytorch_model.safetensors"
UNET = {"_class_name": "UNet2DConditionModel", "down_block_types": ["DownBlock2D"]}
XL_UNET = {**UNET, "addition_embed_type": "text_time", "cross_attention_dim": 2048}
VIDEO = {"_class_name": "UNet3DConditionModel", "down_block_types": ["DownBlock3D"]}


def tree(folder: Path, files: dict[str, object]) -> Tree:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return Tree.of_folder(folder)


@pytest.mark.parametrize(
    ("files", "family"),
    [
        ({"model_index.json": {"_class_name": "StableDiffusionPipeline"}}, "animatediff"),
        ({"model_index.json": {"_class_name": "TextToVideoSDPipeline"}, "unet/config.json": VIDEO}, "modelscope"),
        ({"model_index.json": {}, "unet/config.json": {**VIDEO, "fps_cond": True}}, "videocrafter"),
        ({"config.json": {**VIDEO, "fps_cond": True}, WEIGHTS: {}}, "videocrafter"),
        ({"config.json": VIDEO, WEIGHTS: {}}, "modelscope"),
        ({"unet/config.json": {"down_block_types": ["CrossAttnDownBlock2D"]}}, "animatediff"),
        ({"model_index.json": {"_class_name": "StableDiffusionXLPipeline"}}, "animatediff-sdxl"),
        ({"unet/config.json": XL_UNET}, "animatediff-sdxl"),
    ],
)
def test_families(tmp_path: Path, files: dict[str, object], family: str) -> None:
    found = tree(tmp_path, files)
    assert guess_family(found, refuse_other_models(found)) == family


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"model_index.json": {"_class_name": "StableDiffusionXLInpaintPipeline"}}, "an image and a mask"),
        ({"unet/config.json": {**XL_UNET, "cross_attention_dim": 1280}}, "is SDXL's refiner: it refines"),
        ({"model_index.json": {"_class_name": "StableDiffusionInpaintPipeline"}}, "an image and a mask"),
        ({"unet/config.json": {"_class_name": "UNetMotionModel"}}, "motion modules merged .*--motion-adapter"),
        ({"config.json": {"_class_name": "AutoencoderKL"}, WEIGHTS: {}}, "give it with --vae"),
        ({"config.json": {"_class_name": "MotionAdapter"}, WEIGHTS: {}}, "give it with --motion-adapter"),
        ({"config.json": {"_class_name": "SparseControlNetModel"}, WEIGHTS: {}}, "give it with --sparse-control"),
        (
            {"model_index.json": {"_class_name": "AnimateDiffSparseControlNetPipeline"}},
            "its controlnet folder with --sp",
        ),
        ({"config.json": {"_class_name": "ControlNetModel"}, WEIGHTS: {}}, "ControlNets are not supported"),
        ({"model_index.json": {"_class_name": "LTXPipeline\u001b[2J"}}, "is a LTXPipeline2J whose family"),
        ({"model_index.json": []}, "is not a JSON object"),
    ],
)
def test_refusals(tmp_path: Path, files: dict[str, object], said: str) -> None:
    found = tree(tmp_path, files)
    with pytest.raises(ConfigurationError, match=said) as raised:
        guess_family(found, refuse_other_models(found))
    assert raised.value.message.isprintable()


@pytest.mark.parametrize(
    ("name", "files", "said"),
    [
        ("vae", {"config.json": {"scaling_factor": 0.13025}, WEIGHTS: {}}, "is of SDXL"),
        ("vae", {"config.json": UNET, WEIGHTS: {}}, "is a UNet2DConditionModel; vae must be of class"),
        ("motion_adapter", {"config.json": {"block_out_channels": [320, 640, 1280]}, WEIGHTS: {}}, "is of SDXL"),
        ("motion_adapter", {"motion_adapter/diffusion_pytorch_model.bin": {}}, "is a pickle"),
        ("motion_adapter", {"unet/config.json": UNET}, "has no motion_adapter: neither config.json"),
    ],
)
def test_single_components(tmp_path: Path, name: str, files: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        tree(tmp_path, files).only(name, None, "animatediff")


@pytest.mark.parametrize(
    ("name", "config"),
    [("vae", {"scaling_factor": 0.18215}), ("motion_adapter", {"block_out_channels": [320, 640, 1280, 1280]})],
)
def test_components_of_stable_diffusion_1_are_none_of_sdxl(
    tmp_path: Path, name: str, config: dict[str, object]
) -> None:
    found = tree(tmp_path, {"config.json": config, WEIGHTS: {}})
    with pytest.raises(ConfigurationError, match="is not of SDXL: family animatediff-sdxl has other latents"):
        found.only(name, None, "animatediff-sdxl")
    assert found.only(name, None, "animatediff").inside == ""
