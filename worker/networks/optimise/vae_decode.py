"""Latents -> pixels: as many frames per call as memory allows, converted to bytes on the device, copied to the host."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Activations of the decoder at its peak, per output pixel and channel of its last level: 0.40 GB for a frame of
# 512x512 in half precision with 128 channels (counted on the meta device, 2026-11).
PEAK_PER_CHANNEL = 6
FREE_MEMORY_SHARE = 0.5
FRAMES_PER_CALL_ON_CPU = 4  # more are not faster


@torch.no_grad()
def decode(vae: Any, latents: Tensor, *, upscale: int = 1, frames_per_call: int | None = None) -> Tensor:
    """Latents (1, C, F, h, w) -> frames (F, H, W, 3) uint8 on the CPU, enlarged `upscale` times.

    `frames_per_call`: frames that are decoded together; None: what fits in memory.
    """
    z = latents[0].transpose(0, 1).to(vae.dtype) / vae.config.scaling_factor  # (F, C, h, w)
    z = z.contiguous(memory_format=torch.channels_last)
    batches = z.split(frames_per_call or fitting_frames(vae, latents))
    return torch.cat([_to_pixels(vae.decode(batch).sample, upscale) for batch in batches]).cpu()


def fitting_frames(vae: Any, latents: Tensor) -> int:
    """Frames that fit in free memory, a power of two: small changes of free memory then change no kernel and no bit."""
    frames, height, width = latents.shape[-3:]
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    itemsize = torch.empty((), dtype=vae.dtype).itemsize
    frame_bytes = PEAK_PER_CHANNEL * vae.config.block_out_channels[0] * height * width * scale**2 * itemsize
    on_gpu = latents.device.type == "cuda"
    most = int(FREE_MEMORY_SHARE * free_bytes(latents.device) // frame_bytes) if on_gpu else FRAMES_PER_CALL_ON_CPU
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
