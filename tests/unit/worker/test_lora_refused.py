"""LoRA files that cannot be applied whole are refused by name, alike by verify and by loading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError
from tests import lora_files
from tests.lora_files import RANK, Numbers, Weights
from tests.tiny_models import animatediff_without_image_parts, save_model, write_entry
from worker.networks.loading import load
from worker.networks.lora import adapt_text_encoders, fuse_unet_loras
from worker.networks.models import Models
from worker.verify import verify

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"  # 16 to 16
CONV = "down_blocks.0.resnets.0.conv1"  # 16 to 16, 3x3
STEM, CONV_STEM = (f"lora_unet_{name.replace('.', '_')}" for name in (LAYER, CONV))
TEXT_STEM = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"  # 32 to 32
WEIGHTS = {LAYER: torch.randn(16, 16), CONV: torch.randn(16, 16, 3, 3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return animatediff_without_image_parts(tmp_path_factory.mktemp("refused") / "model")


def entry_with(folder: Path, file: Weights, family: str = "animatediff", settings: str = "") -> ModelEntry:
    save_file({key: value.clone() for key, value in file.items()}, folder / "style.safetensors")
    lines = ["[sources.own]", 'folder = "."', "[[models.tiny.loras]]", 'file = "own/style.safetensors"', settings]
    return write_entry(folder, family, *lines)


def good(**changes: torch.Tensor | None) -> Weights:
    """A LoRA of a linear layer and a convolution, with weights changed or, if None, left out."""
    file = lora_files.kohya("lora_unet", WEIGHTS, Numbers())
    merged = {**file, **{key.replace("__", "."): value for key, value in changes.items()}}
    return {key: value for key, value in merged.items() if value is not None}


def loha_with(**changes: torch.Tensor) -> Weights:
    return lora_files.loha("lora_unet", WEIGHTS, Numbers())[0] | {k.replace("__", "."): v for k, v in changes.items()}


def lokr_with(**changes: torch.Tensor) -> Weights:
    return lora_files.lokr("lora_unet", WEIGHTS, Numbers())[0] | {k.replace("__", "."): v for k, v in changes.items()}


ONE = torch.ones(1)
CASES: dict[str, tuple[Callable[[], Weights], str]] = {
    "full matrix": (lambda: good(**{f"{STEM}__diff": ONE}), r"full weights \(diff\).*to_q\.diff"),
    "bias of a full matrix": (lambda: good(**{f"{CONV_STEM}__diff_b": ONE}), r"full weights \(diff\)"),
    "locon tucker": (lambda: good(**{f"{CONV_STEM}__lora_mid__weight": ONE}), "Tucker decomposition"),
    "glora": (lambda: {f"{STEM}.{name}.weight": ONE for name in ("a1", "a2", "b1", "b2")}, "GLoRA"),
    "oft": (lambda: {f"{STEM}.oft_blocks": ONE, f"{STEM}.alpha": ONE}, "OFT"),
    "ia3": (lambda: {f"{STEM}.weight": ONE, f"{STEM}.on_input": ONE}, r"\(IA\)\^3"),
    "norm": (lambda: good(**{"lora_unet_conv_norm_out__w_norm": ONE}), "norm layers"),
    "scalar": (lambda: loha_with(**{f"{STEM}__scalar": ONE}), "LyCORIS' scalar"),
    "sdxl": (lambda: good(**{"lora_te2_text_model_x__alpha": ONE}), "SDXL's second text encoder"),
    "bundled embedding": (lambda: good(**{"bundle_emb__x__string_to_param__*": ONE}), "bundled textual inversion"),
    "textual inversion": (lambda: {"emb_params": ONE}, "list it under textual_inversions"),
    "peft's own file": (lambda: {f"base_model.model.{LAYER}.lora_A.weight": ONE}, "alpha is in another file"),
    "checkpoint": (lambda: {"model.diffusion_model.out.0.weight": ONE}, "no LoRA: model.diffusion_model.out.0.weight"),
    "flux": (
        lambda: lora_files.dotted(
            "transformer.", {"blocks.0": ONE[:, None]}, Numbers(), ".lora_A.weight", ".lora_B.weight"
        ),
        r"match no layer: transformer\.blocks\.0\.lora_A\.weight, transformer",
    ),
    "absent layer": (lambda: good(lora_unet_down_blocks_7_to_q__alpha=ONE), r"match no layer: lora_unet_down_blocks_7"),
    "absent original block": (
        lambda: good(lora_unet_input_blocks_9_1_proj_in__alpha=ONE),
        r"match no layer: lora_unet_input_blocks_9_1_proj_in\.alpha",
    ),
    "absent text layer": (lambda: good(lora_te_text_model_x__alpha=ONE), "text encoder of the image model.*no layer"),
    "other rank": (
        lambda: good(**{f"{STEM}__lora_up__weight": torch.ones(16, 3)}),
        r"to_q\.lora_up\.weight has shape \(16, 3\), the layer needs \(16, 2\)",
    ),
    "other width": (
        lambda: good(**{f"{STEM}__lora_down__weight": torch.ones(2, 99)}),
        r"to_q\.lora_down\.weight has shape \(2, 99\), the layer needs \(2, 16\)",
    ),
    "linear for a convolution": (
        lambda: good(**{f"{CONV_STEM}__lora_down__weight": torch.ones(2, 144)}),
        r"conv1\.lora_down\.weight has shape \(2, 144\), the layer needs \(2, 16, 3, 3\)",
    ),
    "rank 0": (lambda: good(**{f"{STEM}__lora_down__weight": torch.ones(0, 16)}), "rank 0"),
    "no up": (lambda: good(**{f"{STEM}__lora_up__weight": None}), r"to_q\.alpha lacks its lora_B\.weight"),
    "no down": (lambda: good(**{f"{STEM}__lora_down__weight": None}), r"to_q\.alpha has no lora_A\.weight"),
    "alpha alone": (lambda: good(lora_unet_conv_in__alpha=ONE), r"conv_in\.alpha is a scale without weights"),
    "two alphas": (lambda: good(**{f"{STEM}__alpha": torch.ones(2)}), r"to_q\.alpha is not one number"),
    "norm layer": (
        lambda: lora_files.kohya("lora_unet", {"conv_norm_out": torch.ones(16, 16)}, Numbers()),
        r"conv_norm_out\.alpha is for a GroupNorm",
    ),
    "twice": (
        lambda: good() | lora_files.dotted("unet.", WEIGHTS, Numbers(), ".lora_A.weight", ".lora_B.weight"),
        "one layer twice",
    ),
    "two kinds": (lambda: good() | loha_with(), "LoHa and LoRA"),
    "nan": (lambda: good(**{f"{STEM}__alpha": torch.tensor(torch.nan)}), r"to_q\.alpha is not finite"),
    "infinity": (
        lambda: good(**{f"{CONV_STEM}__lora_up__weight": torch.full((16, 2, 1, 1), torch.inf)}),
        r"conv1\.lora_up\.weight is not finite",
    ),
    "empty": (dict, "no weights"),
    "dora over inputs": (
        lambda: good(**{f"{STEM}__dora_scale": torch.ones(1, 16)}),
        r"dora_scale has shape \(1, 16\).*outputs of a layer, not its inputs",
    ),
    "dora with loha": (lambda: loha_with(**{f"{STEM}__dora_scale": torch.ones(16, 1)}), "DoRA with LoHa"),
    "half a tucker": (
        lambda: loha_with(**{f"{CONV_STEM}__hada_t1": torch.ones(2, 2, 3, 3)}),
        r"lacks its hada_t2",
    ),
    "lokr of another layer": (lambda: lokr_with(**{f"{STEM}__lokr_w1": torch.ones(4, 3)}), "do not make a weight of"),
    "lokr transposed": (
        lambda: lokr_with(**{f"{STEM}__lokr_w1": torch.ones(2, 4)}),
        "make 8 outputs, the layer has 16",
    ),
    "half a lokr": (lambda: {f"{STEM}.lokr_w1": torch.ones(4, 2)}, "needs lokr_w2, or lokr_w2_a and lokr_w2_b"),
}


@pytest.fixture(scope="module")
def plain(folder: Path) -> Models:
    return load(write_entry(folder, "animatediff"), "cpu")


@pytest.mark.parametrize("case", CASES)
def test_file_that_cannot_be_applied_whole_is_refused(folder: Path, plain: Models, case: str) -> None:
    file, complaint = CASES[case]
    entry = entry_with(folder, file())

    def apply() -> None:  # as `load` does
        fuse_unet_loras(entry, plain.image_unet, plain.video_unet)
        adapt_text_encoders(entry, plain.image_text_encoder, plain.video_text_encoder)

    with pytest.raises(ConfigurationError, match=rf"LoRA .*style\.safetensors.*{complaint}"):
        apply()


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "case", ["absent text layer", "other rank", "lokr of another layer", "dora over inputs", "nan"]
)
def test_verify_refuses_it_without_the_networks_weights(folder: Path, case: str) -> None:
    file, complaint = CASES[case]
    with pytest.raises(ConfigurationError, match=rf"LoRA .*style\.safetensors.*{complaint}"):
        list(verify(entry_with(folder, file())))


def test_file_that_is_no_safetensors_file_is_refused(folder: Path) -> None:
    entry = entry_with(folder, good())
    (folder / "style.safetensors").write_bytes(b"PK pickle")
    with pytest.raises(ConfigurationError, match=r"style\.safetensors is not a safetensors file"):
        list(verify(entry))


@pytest.mark.parametrize("config", ["[]", '{"unet.lora_alpha": NaN}', '{"unet.lora_alpha": "8"}', "{"])
def test_metadata_that_cannot_be_read_is_refused(folder: Path, plain: Models, config: str) -> None:
    entry = entry_with(folder, good())
    save_file(good(), folder / "style.safetensors", {"lora_adapter_metadata": config})
    with pytest.raises(ConfigurationError, match=r"LoRA .*style\.safetensors"):
        fuse_unet_loras(entry, plain.image_unet, plain.video_unet)


@pytest.mark.parametrize(
    ("file", "settings", "complaint"),
    [
        (
            lambda: lora_files.kohya(
                "lora_unet", {"mid_block.motion_modules.0.proj_in": torch.ones(32, 32)}, Numbers(), alpha=RANK
            ),
            "",
            r"does not fit the video model: .* match no layer: lora_unet_mid_block_motion_modules_0_proj_in",
        ),
        (
            lambda: lora_files.loha(
                "lora_unet", {"down_blocks.0.temp_convs.0.conv1.2": torch.ones(16, 16, 3, 1, 1)}, Numbers()
            )[0],
            'on = ["video"]',
            "is LoHa for a Conv3d, which peft cannot apply",
        ),
        (
            lambda: lora_files.kohya(TEXT_STEM.split("_text")[0], {TEXT_STEM[8:]: torch.ones(32, 32)}, Numbers()),
            'on = ["image", "video"]',
            r"text encoder of the video model: .*q_proj\.lora_\w+\.weight has shape",
        ),
    ],
    ids=["motion", "loha of 3D", "text of another width"],
)
def test_3d_network_refuses_what_it_has_no_layer_for(
    tmp_path: Path, file: Callable[[], Weights], settings: str, complaint: str
) -> None:
    folder = tmp_path / "model"
    save_model("modelscope", folder)
    entry = entry_with(folder, file(), "modelscope", settings)
    with pytest.raises(ConfigurationError, match=complaint):
        load(entry, "cpu")
