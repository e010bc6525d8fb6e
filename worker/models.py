"""A model folder in the diffusers layout -> networks that encode, denoise and decode.

The only file that knows diffusers and transformers, which are typed in part only: their objects are `Network` here.

AnimateDiff family: tokenizer/, text_encoder/, vae/, unet/ (spatial layers of the video model), motion_adapter/,
scheduler/ and image_unet/, image_scheduler/ for the image model. Safetensors only; nothing is fetched, no code is run.
"""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sampler import ImageDenoiser, NoiseSchedule, VideoDenoiser
from service.errors import ConfigurationError
from service.jobs import Generation
from service.models import ModelEntry
from worker import cpu

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when huggingface_hub is imported below

from diffusers import (
    AutoencoderKL,
    MotionAdapter,
    UNet2DConditionModel,
    UNetMotionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

UNSAFE = (".bin", ".ckpt", ".pkl", ".pt", ".pth")  # pickles: loading one runs its code
DECODED_AT_ONCE = 4  # frames; bounds the memory of the decoder's activations

Network = Any


@dataclass(frozen=True)
class Models:
    """What a resident worker keeps: built once, used for every job."""

    entry: ModelEntry
    device: torch.device
    dtype: torch.dtype
    tokenizer: Network
    text_encoder: Network
    vae: Network
    image_unet: Network
    video_unet: Network
    image_schedule: NoiseSchedule
    video_schedule: NoiseSchedule

    def latents_shape(self, generation: Generation) -> tuple[int, int, int, int, int]:
        """(1, C, F, h, w) of the clip that a generation asks for."""
        scale = self.entry.upscale * 2 ** (len(self.vae.config.block_out_channels) - 1)
        channels = int(self.vae.config.latent_channels)
        return 1, channels, generation.num_frames, generation.height // scale, generation.width // scale

    @torch.no_grad()
    def encode(self, text: str) -> Tensor:
        """Text -> (1, tokens, dim). Raises ValueError for a text longer than the encoder reads; nothing is cut off."""
        limit = int(self.tokenizer.model_max_length)
        ids: list[int] = self.tokenizer(text)["input_ids"]
        if len(ids) > limit:
            raise ValueError(f"the text has {len(ids)} tokens, the text encoder reads {limit}; shorten it")
        padded = self.tokenizer(text, padding="max_length", max_length=limit, return_tensors="pt").input_ids
        return self.text_encoder(padded.to(self.device))[0].to(self.dtype)

    def denoisers(self, cond: Tensor, uncond: Tensor) -> tuple[ImageDenoiser, VideoDenoiser]:
        return (
            ImageDenoiser(self.image_unet, cond, uncond, prediction_type=self.image_schedule.prediction_type),
            VideoDenoiser(self.video_unet, cond, uncond, prediction_type=self.video_schedule.prediction_type),
        )

    @torch.no_grad()
    def decode(self, latents: Tensor, at_once: int = DECODED_AT_ONCE) -> Tensor:
        """Latents (1, C, F, h, w) -> frames (F, H, W, 3) uint8 on the CPU, enlarged by the entry's whole factor."""
        z = latents[0].transpose(0, 1).to(self.dtype) / self.vae.config.scaling_factor  # (F, C, h, w)
        frames = torch.cat([self.vae.decode(part).sample.float() for part in z.split(at_once)])
        if self.entry.upscale > 1:
            frames = F.interpolate(frames, scale_factor=self.entry.upscale, mode="bicubic")
        pixels = ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().cpu()


def load(entry: ModelEntry, device: torch.device) -> Models:
    """Raises ConfigurationError naming the folder that is missing or holds something unsafe."""
    folder = entry.path
    _check(folder)
    transformers_logging.disable_progress_bar()  # its bar for loading weights is noise in a log
    dtype = torch.float16 if device.type == "cuda" else torch.float32

    def network(kind: Network, name: str, **settings: Any) -> Network:
        loaded = kind.from_pretrained(folder / name, use_safetensors=True, local_files_only=True, **settings)
        return loaded.to(device).eval().requires_grad_(False)

    def diffuser(kind: Network, name: str) -> Network:
        return network(kind, name, torch_dtype=dtype)

    tokenizer = _tokenizer(folder / "tokenizer")
    text_encoder = network(CLIPTextModel, "text_encoder", dtype=dtype)
    if len(tokenizer) != text_encoder.config.vocab_size:  # a tokenizer that did not load turns every prompt to noise
        raise ConfigurationError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the text encoder {text_encoder.config.vocab_size}; "
            "they do not belong together"
        )
    image_unet = diffuser(UNet2DConditionModel, "image_unet")
    video_unet = _video_unet(diffuser(UNet2DConditionModel, "unet"), diffuser(MotionAdapter, "motion_adapter"))
    if device.type == "cpu":
        for unet in (image_unet, video_unet):
            cpu.prepare(unet)
    return Models(
        entry=entry,
        device=device,
        dtype=dtype,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=diffuser(AutoencoderKL, "vae"),
        image_unet=image_unet,
        video_unet=video_unet,
        image_schedule=_schedule(folder / "image_scheduler"),
        video_schedule=_schedule(folder / "scheduler"),
    )


def _tokenizer(folder: Path) -> Network:
    kind: Network = CLIPTokenizer
    return kind.from_pretrained(folder, local_files_only=True)


def _video_unet(spatial: Network, adapter: Network) -> Network:
    with _quiet("diffusers"):  # it advises a setting of from_pretrained, which is not how a motion UNet is made
        unet = cast(UNetMotionModel, UNetMotionModel.from_unet2d(spatial, adapter))
    return unet.eval().requires_grad_(False)


@contextmanager
def _quiet(name: str) -> Generator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _schedule(folder: Path) -> NoiseSchedule:
    config: dict[str, Any] = json.loads((folder / "scheduler_config.json").read_text())
    return NoiseSchedule.from_config(config)


def _check(folder: Path) -> None:
    needed = (
        "tokenizer",
        "text_encoder",
        "vae",
        "unet",
        "motion_adapter",
        "scheduler",
        "image_unet",
        "image_scheduler",
    )
    missing = [name for name in needed if not (folder / name).is_dir()]
    if missing:
        raise ConfigurationError(f"model folder {folder} lacks {', '.join(missing)}; see the README on model folders")
    unsafe = [str(f.relative_to(folder)) for f in sorted(folder.rglob("*")) if f.suffix in UNSAFE]
    if unsafe:
        raise ConfigurationError(f"model folder {folder} holds {', '.join(unsafe)}; only safetensors are loaded")
