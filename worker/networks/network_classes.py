"""The classes of diffusers and transformers that a model's components are."""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from service.catalog.family_components import SPARSE_CONTROL, is_transformer
from service.catalog.model_entry import ModelEntry

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # huggingface_hub reads it when it is imported below

from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXTransformer3DModel,
    MotionAdapter,
    SparseControlNetModel,
    UNet2DConditionModel,
    UNet3DConditionModel,
    WanTransformer3DModel,
)
from diffusers.models.modeling_utils import no_init_weights
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    PreTrainedModel,
    T5EncoderModel,
    UMT5EncoderModel,
)

from worker.networks.videocrafter_unet import VideoCrafterUNet

Network = Any  # diffusers and transformers are only partly typed


def empty_network(kind: Network, config: dict[str, Any]) -> Network:
    """A network whose weights are not initialised."""
    with no_init_weights():
        if issubclass(kind, PreTrainedModel):
            of_transformers: Network = kind
            return of_transformers(of_transformers.config_class(**config))
        return kind.from_config(config)


def network_class(entry: ModelEntry, name: str) -> Network:
    if is_transformer(entry.family):
        return _TRANSFORMERS[entry.family][name.removesuffix("_2")]
    video: dict[str, Network] = {
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


_TRANSFORMERS: dict[str, dict[str, Network]] = {
    "wan": {
        "text_encoder": UMT5EncoderModel,
        "vae": AutoencoderKLWan,
        "transformer": WanTransformer3DModel,
        "image_encoder": CLIPVisionModel,
    },
    "cogvideox": {
        "text_encoder": T5EncoderModel,
        "vae": AutoencoderKLCogVideoX,
        "transformer": CogVideoXTransformer3DModel,
    },
}


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
