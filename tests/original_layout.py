"""Writes networks in the layouts of the original code: the inverse of what diffusers' converters do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Weights = dict[str, Tensor]
Rules = Iterable[tuple[str, str]]

_RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"),
    ("conv_shortcut", "skip_connection"),
)
_UNET_ENDS = (
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^mid_block\.resnets\.0", "middle_block.0"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^mid_block\.resnets\.1", "middle_block.2"),
)
_SDXL_ENDS = (
    *_UNET_ENDS,
    (r"^add_embedding\.linear_1", "label_emb.0.0"),
    (r"^add_embedding\.linear_2", "label_emb.0.2"),
)
_VAE = (
    (r"(mid_block\.attentions\.0)\.group_norm", r"\1.norm"),
    (r"(mid_block\.attentions\.0)\.to_([qkv])", r"\1.\2"),
    (r"(mid_block\.attentions\.0)\.to_out\.0", r"\1.proj_out"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
    (r"(down|up)_blocks\.(\d+)\.resnets", r"\1.\2.block"),
    (r"(down|up)_blocks\.(\d+)\.(down|up)samplers\.0", r"\1.\2.\3sample"),
)
_OPEN_CLIP = (
    (r"^encoder\.layers", "transformer.resblocks"),
    (r"layer_norm(\d)", r"ln_\1"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    (r"self_attn", "attn"),
    (r"^embeddings\.token_embedding", "token_embedding"),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^final_layer_norm", "ln_final"),
)
_MOTION = (
    (r"(motion_modules\.\d+)\.", r"\1.temporal_transformer."),
    (r"\.norm([12])\b", lambda m: f".norms.{int(m[1]) - 1}"),
    (r"\.norm3\b", ".ff_norm"),
    (r"\.attn([12])\b", lambda m: f".attention_blocks.{int(m[1]) - 1}"),
)


def renamed(name: str, rules: Iterable[tuple[str, Any]]) -> str:
    for old, new in rules:
        name = re.sub(old, new, name)
    return name


def read(folder: Path) -> Weights:
    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


def checkpoint(model: Path, layers: int) -> Weights:
    """A Stable Diffusion 1 checkpoint of a diffusers folder whose UNet has so many layers per block."""
    text = {
        f"cond_stage_model.transformer.text_model.{key}": value for key, value in read(model / "text_encoder").items()
    }
    text["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(16)[None]
    vae = {f"first_stage_model.{key}": value for key, value in original_vae(read(model / "vae")).items()}
    network = {f"model.diffusion_model.{key}": value for key, value in unet(read(model / "unet"), layers).items()}
    return {**network, **vae, **text}


def sdxl_checkpoint(model: Path, layers: int) -> Weights:
    """An SDXL checkpoint of a diffusers folder, with what trainers leave in it."""
    clip = {
        f"conditioner.embedders.0.transformer.text_model.{key}": value
        for key, value in read(model / "text_encoder").items()
    }
    clip["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(16)[None]
    big = read(model / "text_encoder_2")
    projection = big.pop("text_projection.weight").T.contiguous()
    big = open_clip({key.removeprefix("text_model."): value for key, value in big.items()}, projection)
    renamed_big = {key.replace("cond_stage_model.", "conditioner.embedders.1."): value for key, value in big.items()}
    vae = {f"first_stage_model.{key}": value for key, value in original_vae(read(model / "vae")).items()}
    network = {f"model.diffusion_model.{key}": value for key, value in unet(read(model / "unet"), layers).items()}
    return {**network, **vae, **clip, **renamed_big, "denoiser.sigmas": torch.ones(1000)}


def unet(weights: Weights, layers: int) -> Weights:
    with_attention = {m[0] for key in weights if (m := re.match(r"up_blocks\.\d+\.attentions", key))}

    def name(key: str) -> str:
        found = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", key)
        if not found:
            key = renamed(key, _SDXL_ENDS)
            return renamed(key, _RESNET) if key.startswith(("middle_block.0", "middle_block.2")) else key
        side, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        first = block * (layers + 1) + (side == "down")
        blocks = "input_blocks" if side == "down" else "output_blocks"
        if kind == "downsamplers":
            return f"{blocks}.{first + layers}.0.{rest.replace('conv', 'op')}"
        if kind == "upsamplers":
            return f"{blocks}.{first + layers}.{1 + (f'up_blocks.{block}.attentions' in with_attention)}.{rest}"
        if kind == "attentions":
            return f"{blocks}.{first + layer}.1.{rest}"
        return f"{blocks}.{first + layer}.0.{renamed(rest, _RESNET)}"

    return {name(key): value for key, value in weights.items()}


def original_vae(weights: Weights) -> Weights:
    levels = 1 + max(int(m[1]) for key in weights if (m := re.search(r"up_blocks\.(\d+)", key)))
    found: Weights = {}
    for key, value in weights.items():
        name = renamed(key, _VAE)
        name = re.sub(r"decoder\.up\.(\d+)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", name)
        is_linear = "mid.attn_1" in name and value.ndim == 2  # they were 1x1 convolutions
        found[name] = value[:, :, None, None].clone() if is_linear else value
    return found


def open_clip(weights: Weights, projection: Tensor | None = None) -> Weights:
    """A text encoder as in Stable Diffusion 2, with a projection, which that does not use."""
    found: Weights = {}
    for key, value in weights.items():
        if ".self_attn.q_proj." in key:
            parts = [weights[key.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            name = renamed(key.replace("self_attn.q_proj.", "self_attn.in_proj_"), _OPEN_CLIP)
            found[name] = torch.cat(parts)
        elif not re.search(r"self_attn\.[kv]_proj", key):
            found[renamed(key, _OPEN_CLIP)] = value
    width = weights["final_layer_norm.weight"].shape[0]
    projection = torch.zeros(width, width) if projection is None else projection
    found |= {"text_projection": projection, "logit_scale": torch.tensor(1.0)}
    return {f"cond_stage_model.model.{key}": value for key, value in found.items()}


def motion_modules(weights: Weights) -> Weights:
    """Both attentions of a block have the position encodings that diffusers has once."""
    found: Weights = {}
    for key, value in weights.items():
        name = renamed(key, _MOTION)
        if name.endswith("pos_embed.pe"):
            places = [name.replace("pos_embed", f"attention_blocks.{i}.pos_encoder") for i in (0, 1)]
            found |= {place: value.clone() for place in places}
        else:
            found[name] = value
    return found


def sparse_control(weights: Weights) -> Weights:
    """Like the motion modules, of which it has some; they have one attention. The other layers keep their names."""
    found: Weights = {}
    for key, value in weights.items():
        name = renamed(key, _MOTION) if ".motion_modules." in key else key
        found[name.replace("pos_embed", "attention_blocks.0.pos_encoder")] = value
    return found
