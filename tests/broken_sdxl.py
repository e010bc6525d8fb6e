"""Broken and odd SDXL folders: changes of a tiny good one whose base is the image model too."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import MotionAdapter, UNet2DConditionModel

from service.catalog.model_entry import ModelEntry
from tests import lora_files, tiny_sdxl
from tests.broken_models import TEXT, Broken, config, delete, one_value, several, weights
from tests.broken_sums import LORA, lora
from tests.lora_files import Numbers

Case = partial(Broken, family=tiny_sdxl.FAMILY)
SECOND = "text_encoder_2"
TEXT_LAYER = "text_model_encoder_layers_0_self_attn_q_proj"


def good_sdxl(folder: Path) -> ModelEntry:
    folder.mkdir()
    tiny_sdxl.save_sdxl(folder)
    return tiny_sdxl.without_image_model(folder)


def other_unet(**changes: Any) -> Any:
    return lambda folder: UNet2DConditionModel(**{**tiny_sdxl.UNET, **changes}).save_pretrained(folder / "unet")


def other_adapter(**changes: Any) -> Any:
    return lambda folder: MotionAdapter(**{**tiny_sdxl.ADAPTER, **changes}).save_pretrained(folder / "motion_adapter")


def copies(*names: str) -> Any:
    return lambda folder: [shutil.copytree(folder / name, folder / f"image_{name}") for name in names]


def second_encoder(rows: int) -> dict[str, torch.Tensor]:
    """A LoRA of its first layer, 32 wide, for `rows` outputs."""
    return lora_files.kohya("lora_te2", {TEXT_LAYER: torch.ones(rows, 32)}, Numbers())


SDXL_CASES: dict[str, Broken] = {
    "UNet that is none of SDXL": Case(
        other_unet(addition_embed_type=None), ("unet/config.json", "this is no UNet of SDXL", "another family")
    ),
    "UNet for other pooled embeddings": Case(
        other_unet(projection_class_embeddings_input_dim=64),
        ("the image model takes 64 numbers next to the text, its text_encoder_2 returns 24", "no refiner"),
    ),
    "UNet for other text widths": Case(
        other_unet(cross_attention_dim=32), ("takes embeddings of dim 32, its text encoder returns 48",)
    ),
    "adapter of Stable Diffusion 1": Case(
        other_adapter(block_out_channels=[8, 16, 16, 16]), ("different number of blocks", "SDXL: sdxl-beta")
    ),
    "no second text encoder": Case(lambda f: shutil.rmtree(f / SECOND), (f"lacks {SECOND}", "put it there")),
    "second text encoder without weights": Case(delete(f"{SECOND}/model.safetensors"), (f"{SECOND} has no model",)),
    "second text encoder of the first one's class": Case(
        config(SECOND, architectures=["CLIPTextModel"]),
        (f"{SECOND} of family", "must be a CLIPTextModelWithProjection"),
    ),
    "second text encoder without its projection": Case(
        weights(SECOND, lambda w: {k: v for k, v in w.items() if k != "text_projection.weight"}, TEXT),
        (f"{SECOND} does not fit its config.json", "lacks text_projection.weight"),
    ),
    "NaN in the second text encoder": Case(
        weights(SECOND, one_value("text_projection.weight", float("nan")), TEXT),
        (f"{SECOND}/model.safetensors", "text_projection.weight holds NaN"),
    ),
    "old names of the first text encoder": Case(
        weights("text_encoder", lambda w: {f"text_model.{k}": v for k, v in w.items()}, TEXT)
    ),
    "second tokenizer of another vocabulary": Case(
        several(
            config(SECOND, vocab_size=30),
            weights(SECOND, lambda w: {k: v[:30].clone() if "token_emb" in k else v for k, v in w.items()}, TEXT),
        ),
        ("tokenizer_2", "its text encoder 30"),
    ),
    "image model with only one own text encoder": Case(
        copies("tokenizer", "text_encoder"),
        ("has image_text_encoder without image_text_encoder_2, image_tokenizer_2; name all of them or none",),
    ),
    "image model with two own text encoders": Case(
        copies("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    ),
    "LoRA of the second text encoder": Case(lora(second_encoder(32)), lines=LORA),
    "LoRA of another second text encoder": Case(
        lora(second_encoder(64)), ("does not fit the second text encoder of the image model", "lora_te2_"), lines=LORA
    ),
    "LoRA that overflows the second text encoder": Case(
        lora(second_encoder(32)), ("overflows the weights of the layer", "lora_te2_"), lines=("lora_scale = 1e8", *LORA)
    ),
}
