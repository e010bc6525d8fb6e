"""Pixels -> latents: the mode of the autoencoder's posterior, as many frames per call as memory allows."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worker.networks.not_finite import NotFinite
from worker.networks.optimise.vae_decode import fitting_frames, in_float32, warn_once
from worker.networks.vae_config import scaled_latents


@torch.no_grad()
def encode(vae: Any, frames: Tensor, *, frames_per_call: int | None = None) -> Tensor:
    """Frames (F, H, W, 3) uint8 -> latents (1, C, F, h, w) float32 on the vae's device, scaled for the networks.

    An autoencoder that overflows in half precision encodes the frames once more in float32.

    Args:
        frames_per_call: frames that are encoded together; None: what fits in memory.

    Raises:
        NotFinite: the autoencoder returned NaN or infinity, in float32 too.
    """
    latents = _encoded(vae, frames, frames_per_call)
    if not latents.isfinite().all() and vae.dtype is not torch.float32:
        warn_once(f"the autoencoder overflows in {vae.dtype}; such frames are encoded again in float32: set vae_dtype")
        with in_float32(vae):
            latents = _encoded(vae, frames, frames_per_call)
    if not latents.isfinite().all():
        raise NotFinite("autoencoder (vae)", torch.float32)
    return latents


def _encoded(vae: Any, frames: Tensor, frames_per_call: int | None) -> Tensor:
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    count, height, width, _ = frames.shape
    # The encoder needs no more memory than the decoder, which has more channels at the full size.
    size = torch.Size((1, 1, count, height // scale, width // scale))
    found: list[Tensor] = []
    for batch in frames.split(frames_per_call or fitting_frames(vae, size, vae.device)):
        pixels = batch.permute(0, 3, 1, 2).to(vae.device).float().div(127.5).sub(1).to(vae.dtype)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        found.append(vae.encode(pixels).latent_dist.mode().float())
    return scaled_latents(vae, torch.cat(found)).transpose(0, 1)[None].contiguous()
