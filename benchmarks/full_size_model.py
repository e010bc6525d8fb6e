"""A model of full size with random weights: Stable Diffusion 1.5 and AnimateDiff's motion modules, in float16 files."""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import json
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from service.catalog.weight_files import file_sha256

TOKENS = 49408

ENTRY = """
[models.full-size]
family = "animatediff"
created = 1795392000
description = "random weights"
licence = "none"
sizes = ["64x64"]
num_frames = { default = 2, min = 1, max = 16 }
fps = { default = 8, min = 1, max = 24 }
num_inference_steps = { default = 2, min = 1, max = 50 }
guidance_scale = { default = 3, min = 0, max = 20 }

[models.full-size.components]
"""


def save_full_size_model(folder: Path) -> Path:
    """Write 3 GB, with a registry that pins each file by its SHA-256, and return the registry's file."""
    networks = _networks()
    for name, network in networks.items():
        _save_network(folder / name, network)
    _save_tokenizer(folder / "tokenizer")
    betas: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1).save_pretrained(
        folder / "scheduler"
    )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    registry = folder / "models.toml"
    lines = [f'{name} = "files/{name}"' for name in (*networks, "tokenizer", "scheduler")]
    lines += ["", "[sources.files]", f"folder = {json.dumps(str(folder))}", "", "[sources.files.sha256]"]
    lines += [f'"{path.relative_to(folder)}" = "{file_sha256(path)}"' for path in files]
    registry.write_text(ENTRY + "\n".join(lines) + "\n")
    return registry


DOWN = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
UP = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3


def _networks() -> dict[str, Any]:
    """Without weights, by component."""
    vae: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}
    vae |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel(
                sample_size=64, cross_attention_dim=768, attention_head_dim=8, down_block_types=DOWN, up_block_types=UP
            ),
            "motion_adapter": MotionAdapter(),
            "vae": AutoencoderKL(**vae),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=TOKENS,
                    hidden_size=768,
                    intermediate_size=3072,
                    num_hidden_layers=12,
                    num_attention_heads=12,
                    bos_token_id=TOKENS - 2,
                    eos_token_id=TOKENS - 1,
                )
            ),
        }


def _save_network(folder: Path, network: Any) -> None:
    network.save_config(folder) if hasattr(network, "save_config") else network.config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: (0.02 * torch.randn(value.shape, generator=generator)).half()
        for name, value in network.state_dict().items()
        if value.is_floating_point()
    }
    stem = "model" if isinstance(network, CLIPTextModel) else "diffusion_pytorch_model"
    save_file(weights, folder / f"{stem}.safetensors", {"format": "pt"})


def _save_tokenizer(folder: Path) -> None:
    """As many tokens and merges as CLIP has: single letters, then pairs of them."""
    folder.mkdir()
    letters = list(bytes_to_unicode().values())
    ends = [f"{letter}</w>" for letter in letters]
    specials = ["<|startoftext|>", "<|endoftext|>"]
    pairs = list(islice(product(letters, ends), TOKENS - len(letters + ends + specials)))
    tokens = [*letters, *ends, *("".join(pair) for pair in pairs), *specials]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in pairs)]) + "\n")
    config = {"bos_token": specials[0], "eos_token": specials[1], "pad_token": specials[1], "unk_token": specials[1]}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"})
    )
