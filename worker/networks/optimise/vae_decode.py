"""Latents -> pixels: as many frames per call as memory allows, converted to bytes on the device, copied to the host."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.networks.network_classes import errors_only
from worker.networks.not_finite import NotFinite
from worker.networks.vae_config import unscaled_latents

log = logging.getLogger("ivmix.child")

# Activations of the decoder at its peak, per output pixel and channel of its last level: 0.40 GB for a frame of
# 512x512 in half precision with 128 channels (counted on the meta device, 2026-11).
PEAK_PER_CHANNEL = 6
FREE_MEMORY_SHARE = 0.5
FRAMES_PER_CALL_ON_CPU = 4  # more are not faster


@torch.no_grad()
def decode(vae: Any, latents: Tensor, *, upscale: int = 1, frames_per_call: int | None = None) -> Tensor:
    """Latents (1, C, F, h, w) -> frames (F, H, W, 3) uint8 on the CPU, enlarged `upscale` times.

    An autoencoder that overflows in half precision decodes the clip once more in float32.

    Args:
        frames_per_call: frames that are decoded together; None: what fits in memory.

    Raises:
        NotFinite: the autoencoder returned NaN or infinity, in float32 too.
    """
    frames = _finite_frames(vae, latents, upscale, frames_per_call)
    if frames is None and vae.dtype is not torch.float32:
        warn_once(f"the autoencoder overflows in {vae.dtype}; such clips are decoded again in float32: set vae_dtype")
        with in_float32(vae):
            frames = _finite_frames(vae, latents, upscale, frames_per_call)
    if frames is None:
        raise NotFinite("autoencoder (vae)", torch.float32)
    return frames


def _finite_frames(vae: Any, latents: Tensor, upscale: int, frames_per_call: int | None) -> Tensor | None:
    """None if a pixel is NaN or infinite. The host waits for the device once."""
    z = unscaled_latents(vae, latents[0].transpose(0, 1).to(vae.dtype))  # (F, C, h, w)
    z = z.contiguous(memory_format=torch.channels_last)
    ranges: list[Tensor] = []
    pixels: list[Tensor] = []
    for batch in z.split(frames_per_call or fitting_frames(vae, latents.shape, latents.device)):
        frames = vae.decode(batch).sample
        ranges.extend(frames.aminmax())  # NaN if one is
        pixels.append(_to_pixels(frames, upscale))
    return torch.cat(pixels).cpu() if torch.stack(ranges).isfinite().all() else None


@contextmanager
def in_float32(vae: Any) -> Generator[None]:
    """The autoencoder in float32, for a while."""
    dtype = vae.dtype
    with errors_only("diffusers"):  # it warns of every cast
        try:
            yield vae.to(torch.float32)
        finally:
            vae.to(dtype)  # the weights have the same bytes as before


@cache
def warn_once(message: str) -> None:
    log.warning(message)


def fitting_frames(vae: Any, shape: torch.Size, device: torch.device) -> int:
    """Frames that fit in free memory, a power of two: small changes of free memory then change no kernel and no bit.

    Args:
        shape: of the latents, (1, C, F, h, w).
    """
    frames, height, width = shape[-3:]
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    itemsize = torch.empty((), dtype=vae.dtype).itemsize
    frame_bytes = PEAK_PER_CHANNEL * vae.config.block_out_channels[0] * height * width * scale**2 * itemsize
    on_gpu = device.type == "cuda"
    most = int(FREE_MEMORY_SHARE * free_bytes(device) // frame_bytes) if on_gpu else FRAMES_PER_CALL_ON_CPU
    return min(frames, 2 ** (max(most, 1).bit_length() - 1))


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a GPU, or reserved and unused by torch's allocator."""
    free, _total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _to_pixels(frames: Tensor, upscale: int) -> Tensor:
    """(N, 3, H, W) in -1..1 -> (N, H, W, 3) uint8, on the same device."""
    frames = frames.float()
    if upscale > 1:
        frames = F.interpolate(frames, scale_factor=upscale, mode="bicubic")
    return frames.clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
