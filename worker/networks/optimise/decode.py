"""Latents -> pixels: as many frames at once as there is memory for, bytes on the device, one copy to the host."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Activations of the decoder at its peak, for each picture pixel and channel of its last level: 0.40 GB for a frame of
# 512x512 in half precision with 128 channels (counted on the meta device, reference of 2026-11).
PEAK_PER_CHANNEL = 6
SHARE = 0.5  # of what is free
ON_A_CPU = 4  # frames; more are no faster there


@torch.no_grad()
def decode(vae: Any, latents: Tensor, *, upscale: int = 1, at_once: int | None = None) -> Tensor:
    """Latents (1, C, F, h, w) -> frames (F, H, W, 3) uint8 on the CPU, enlarged `upscale` times.

    `at_once`: frames that are decoded together; None: `frames_at_once`.
    """
    z = latents[0].transpose(0, 1).to(vae.dtype) / vae.config.scaling_factor  # (F, C, h, w)
    z = z.contiguous(memory_format=torch.channels_last)
    parts = [_pixels(vae.decode(part).sample, upscale) for part in z.split(at_once or frames_at_once(vae, latents))]
    return torch.cat(parts).cpu()


def prepare(vae: Any) -> None:
    """Channels-last weights, so that convolutions need no layout copies."""
    vae.to(memory_format=torch.channels_last)


def frames_at_once(vae: Any, latents: Tensor) -> int:
    """A power of two, so that small changes of what is free do not change the kernels and with them the last bit."""
    frames, height, width = latents.shape[-3:]
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    itemsize = torch.empty((), dtype=vae.dtype).itemsize
    frame_bytes = PEAK_PER_CHANNEL * vae.config.block_out_channels[0] * height * width * scale**2 * itemsize
    most = int(SHARE * free_bytes(latents.device) // frame_bytes) if latents.device.type == "cuda" else ON_A_CPU
    return min(frames, 2 ** (max(most, 1).bit_length() - 1))


def free_bytes(device: torch.device) -> int:
    """On a GPU: what the driver has, and what torch's allocator holds without using it."""
    free, _total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _pixels(frames: Tensor, upscale: int) -> Tensor:
    """(N, 3, H, W) in -1..1 -> (N, H, W, 3) uint8, on the same device."""
    frames = frames.float()
    if upscale > 1:
        frames = F.interpolate(frames, scale_factor=upscale, mode="bicubic")
    return frames.clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
