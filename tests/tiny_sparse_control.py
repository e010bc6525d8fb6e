"""A tiny SparseCtrl network for the tiny AnimateDiff model of `tests.tiny_models`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AnimateDiffSparseControlNetPipeline,
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    SparseControlNetModel,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

from service.catalog.model_entry import ModelEntry
from service.jobs.model import Generation
from service.jobs.reference import ReferenceFile
from service.jobs.request import VideoRequest
from service.storage import sha256_of
from tests.diffusers_pipelines import CONFIG, NEGATIVE, PROMPT
from tests.tiny_models import Golden, animatediff_without_image_parts, write_entry

FRAMES, STEPS = 3, 3


def control_config(**changes: Any) -> dict[str, Any]:
    """Of a network that fits the tiny UNet; keys of the config that the hub's file has too."""
    unet, adapter = (Golden("animatediff").meta[name] for name in ("idm_config", "adapter_config"))
    names = ("attention_head_dim", "block_out_channels", "cross_attention_dim", "layers_per_block", "norm_num_groups")
    return {
        **{name: unet[name] for name in names},
        "conditioning_channels": 4,
        "down_block_types": ["CrossAttnDownBlockMotion", "DownBlockMotion"],
        "motion_num_attention_heads": adapter["motion_num_attention_heads"],
        **changes,
    }


def save_control(folder: Path, std: float = 0.2, **changes: Any) -> None:
    """Save an untrained network; its zero layers, which would hide it, are random with this standard deviation."""
    torch.manual_seed(2)
    network = SparseControlNetModel(**control_config(**changes))
    for name, parameter in network.named_parameters():
        if any(part in name for part in ("controlnet_", "proj_out")):
            torch.nn.init.normal_(parameter, std=std)
    network.save_pretrained(folder)


def save_controlled(folder: Path) -> ModelEntry:
    """Tiny AnimateDiff with a SparseCtrl network; its image model is the base of the video model, and their noise
    schedule that of `tests.diffusers_pipelines`."""
    animatediff_without_image_parts(folder)
    shutil.rmtree(folder / "image_scheduler")
    scheduler = {"_class_name": "DDIMScheduler", **CONFIG}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    save_control(folder / "sparse_control")
    return write_entry(folder, "animatediff")


def diffusers_pipeline(entry: ModelEntry) -> Any:
    """diffusers' pipeline of the same files."""
    assert entry.path is not None
    made: Any = AnimateDiffSparseControlNetPipeline(
        AutoencoderKL.from_pretrained(entry.path / "vae"),
        CLIPTextModel.from_pretrained(entry.path / "text_encoder").eval(),
        CLIPTokenizer.from_pretrained(entry.path / "tokenizer"),
        UNet2DConditionModel.from_pretrained(entry.path / "unet").eval(),
        MotionAdapter.from_pretrained(entry.path / "motion_adapter"),
        SparseControlNetModel.from_pretrained(entry.path / "sparse_control").eval(),
        DDIMScheduler(**CONFIG),
    )
    made.set_progress_bar_config(disable=True)
    return made


def generation(entry: ModelEntry, file: Path, sampler: Mapping[str, Any], **changes: Any) -> Generation:
    """As a request makes it."""
    media_type = "image/png" if file.suffix == ".png" else "video/mp4"
    described = ReferenceFile(sha256=sha256_of(file), media_type=media_type, num_frames=1, width=32, height=32)
    request: dict[str, Any] = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "seed": 5,
        "num_frames": FRAMES,
        "num_inference_steps": STEPS,
        "input_reference": described,
        "sampler": dict(sampler),
    }
    return entry.resolve(VideoRequest.model_validate(request | changes))
