"""A tiny random SDXL pair in the diffusers layout: base with motion adapter, and a fine-tune as the image model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from tests.tiny_models import write_entry

FAMILY = "animatediff-sdxl"
TOKENS, POOLED = 16, 24
WIDTHS = {"text_encoder": 16, "text_encoder_2": 32}
LAYERS = 2  # of the UNet's blocks, as in SDXL
UNET: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": POOLED + 6 * 8,
    "attention_head_dim": [1, 2, 4],  # heads, in spite of the name
    "block_out_channels": [8, 16, 16],
    "cross_attention_dim": sum(WIDTHS.values()),
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": LAYERS,
    "norm_num_groups": 4,
    "sample_size": 8,
    "transformer_layers_per_block": [1, 1, 2],
    "use_linear_projection": True,
}
ADAPTER: dict[str, Any] = {
    "block_out_channels": UNET["block_out_channels"],
    "motion_layers_per_block": LAYERS,
    "motion_norm_num_groups": 4,
    "motion_num_attention_heads": 2,
    "use_motion_mid_block": False,
}
SCHEDULER: dict[str, Any] = {  # that of SDXL
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
VAE: dict[str, Any] = {
    "block_out_channels": [8, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}


def save_sdxl(folder: Path) -> ModelEntry:
    """Save the pair into `folder` and return its registry entry."""
    torch.manual_seed(1)
    save_base(folder)
    adapter = MotionAdapter(**ADAPTER)
    for name, parameter in adapter.named_parameters():
        if "proj_out" in name:  # zero at first, which would hide the motion modules
            torch.nn.init.normal_(parameter, std=0.2)
    adapter.save_pretrained(folder / "motion_adapter")
    save_fine_tune(folder)
    return write_entry(folder, FAMILY)


def save_base(folder: Path) -> None:
    """What a StableDiffusionXLPipeline's folder holds."""
    save_text(folder)
    UNet2DConditionModel(**UNET).save_pretrained(folder / "unet")
    AutoencoderKL(**VAE).save_pretrained(folder / "vae")
    save_scheduler(folder)


def save_fine_tune(folder: Path) -> None:
    """The image model: another UNet with its own text encoders."""
    save_text(folder, "image_")
    UNet2DConditionModel(**UNET).save_pretrained(folder / "image_unet")
    save_scheduler(folder, "image_")


def without_image_model(folder: Path) -> ModelEntry:
    """Delete the fine-tune: the base is the image model then."""
    for part in folder.glob("image_*"):
        shutil.rmtree(part)
    return write_entry(folder, FAMILY)


def save_scheduler(folder: Path, prefix: str = "") -> None:
    (folder / f"{prefix}scheduler").mkdir()
    (folder / f"{prefix}scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))


def save_text(folder: Path, prefix: str = "") -> None:
    """Two text encoders, and the demo's tokenizer with the padding of each."""
    demo = ModelRegistry.load().get("demo").path
    assert demo is not None
    for number, (name, width) in enumerate(WIDTHS.items()):
        tokenizer = CLIPTokenizer.from_pretrained(demo / "tokenizer", model_max_length=TOKENS)
        if number:
            tokenizer.pad_token = "!"
        tokenizer.save_pretrained(folder / f"{prefix}{name.replace('text_encoder', 'tokenizer')}")
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            projection_dim=POOLED,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            hidden_act="gelu" if number else "quick_gelu",
        )
        (CLIPTextModelWithProjection if number else CLIPTextModel)(config).save_pretrained(folder / f"{prefix}{name}")
