"""The classes of diffusers and transformers that a model's components are."""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from service.catalog.family_components import SPARSE_CONTROL
from service.catalog.model_entry import ModelEntry

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # huggingface_hub reads it when it is imported below

from diffusers import (
    AutoencoderKL,
    MotionAdapter,
    SparseControlNetModel,
    UNet2DConditionModel,
    UNet3DConditionModel,
)
from diffusers.models.modeling_utils import no_init_weights
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from worker.networks.videocrafter_unet import VideoCrafterUNet

Network = Any  # diffusers and transformers are only partly typed


def empty_network(kind: Network, config: dict[str, Any]) -> Network:
    """A network whose weights are not initialised."""
    with no_init_weights():
        is_text = kind in (CLIPTextModel, CLIPTextModelWithProjection)
        return kind(CLIPTextConfig(**config)) if is_text else kind.from_config(config)


def network_class(entry: ModelEntry, name: str) -> Network:
    video = {
        "animatediff": UNet2DConditionModel,
        "animatediff-sdxl": UNet2DConditionModel,
        "modelscope": UNet3DConditionModel,
        "videocrafter": VideoCrafterUNet,
    }
    classes: dict[str, Network] = {
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
        "vae": AutoencoderKL,
        "unet": video[entry.family],
        "motion_adapter": MotionAdapter,
        "image_unet": UNet2DConditionModel,
        SPARSE_CONTROL: SparseControlNetModel,
    }
    return classes[name if name in classes else name.removeprefix("image_")]


@contextmanager
def errors_only(name: str) -> Generator[None]:
    """Suppress the warnings of a logger."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
