"""A tiny random Wan in the layout of diffusers' WanPipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.jobs.model import Generation
from service.jobs.request import VideoRequest

PROMPT, NEGATIVE = "a red circle moving left", "low quality"
WORDS = ("a", "red", "green", "circle", "square", "moving", "left", "right", "on", "teal", "low", "quality")
WIDTH, HEIGHT, FRAMES, STEPS, SHIFT = 48, 32, 9, 4, 3.0  # not square
LATENTS = (1, 16, 3, HEIGHT // 8, WIDTH // 8)
TRANSFORMER: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
VAE: dict[str, Any] = {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
SCHEDULER: dict[str, Any] = {  # that of Wan 2.1
    "_class_name": "UniPCMultistepScheduler",
    "flow_shift": SHIFT,
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
}
ENTRY = """
[models.tiny]
family = "{family}"
path = "."
created = 1795392000
description = "tiny"
licence = "none"
sizes = ["{width}x{height}", "32x32"]
num_frames = {{ default = {frames}, min = 1, max = 81 }}
fps = {{ default = 8, min = 1, max = 24 }}
num_inference_steps = {{ default = {steps}, min = 1, max = 1000 }}
guidance_scale = {{ default = 5, min = 0, max = 20 }}
"""


def save_wan(folder: Path, *lines: str, **transformer: Any) -> ModelEntry:
    """Save the model into `folder` and return its registry entry; `lines` are added to the TOML."""
    torch.manual_seed(2)
    save_text(folder)
    AutoencoderKLWan(**VAE).save_pretrained(folder / "vae")
    save_transformer(folder / "transformer", **transformer)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return wan_entry(folder, *lines)


def save_transformer(folder: Path, **changes: Any) -> None:
    network = WanTransformer3DModel(**{**TRANSFORMER, **changes})
    for parameter in network.parameters():  # diffusers' own start values leave the text without effect
        torch.nn.init.normal_(parameter, std=0.2)
    network.save_pretrained(folder)


def save_tokenizer(folder: Path) -> int:
    """Save a T5 tokenizer and return its number of tokens."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((f"▁{word}", -3.0) for word in WORDS)]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz.,"]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def save_text(folder: Path) -> None:
    config = UMT5Config(
        vocab_size=save_tokenizer(folder / "tokenizer") + 4,  # Wan's has unused rows too
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")


def wan_entry(folder: Path, *lines: str, family: str = "wan") -> ModelEntry:
    file = folder / "models.toml"
    entry = ENTRY.format(family=family, width=WIDTH, height=HEIGHT, frames=FRAMES, steps=STEPS)
    file.write_text("\n".join([entry, *lines]))
    return ModelRegistry.load(file).entry("tiny")


def use_euler(folder: Path) -> None:
    """The scheduler's file with which ddim makes the steps of diffusers' Euler solver."""
    FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(folder / "scheduler")


def pipeline(folder: Path, **others: Any) -> Any:
    made: Any = WanPipeline(
        tokenizer=T5Tokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder"),
        vae=AutoencoderKLWan.from_pretrained(folder / "vae"),
        transformer=WanTransformer3DModel.from_pretrained(folder / "transformer"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        **others,
    )
    made.set_progress_bar_config(disable=True)
    return made


def noise(seed: int = 3) -> Tensor:
    return torch.randn(LATENTS, generator=torch.Generator().manual_seed(seed))


def theirs(pipe: Any, guidance: float, *, output: str = "latent", seed: int = 3) -> Tensor:
    made = pipe(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        width=WIDTH,
        height=HEIGHT,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=noise(seed),
        output_type=output,
    )
    return made.frames


def generation(entry: ModelEntry, **fields: Any) -> Generation:
    return entry.resolve(
        VideoRequest.model_validate({"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": 3} | fields)
    )


def assert_close(found: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    assert (found - expected).abs().max() <= bound * max(1.0, float(expected.abs().max()))
