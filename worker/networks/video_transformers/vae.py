"""Autoencoders that compress time: a whole clip -> latents, and back. The first frame is a latent frame by itself.

They are causal: every latent frame is decoded with what the earlier ones left in the autoencoder, so a clip is never
split along time. Where memory is short it is split into tiles that overlap, as diffusers does it.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.networks.not_finite import NotFinite
from worker.networks.optimise.vae_decode import in_float32, warn_once

NAME = "autoencoder (vae)"


class TemporalVae:
    """For one thread at a time: encoding and decoding leave state in the network.

    Args:
        vae: diffusers' AutoencoderKLWan or AutoencoderKLCogVideoX.
        tiling: whether to decode and encode in tiles always.
    """

    def __init__(self, vae: Any, *, tiling: bool = False) -> None:
        self.network, self._tiling = vae, tiling

    @property
    def channels(self) -> int:
        config = self.network.config
        return int(getattr(config, "z_dim", None) or config.latent_channels)

    @property
    def pixels(self) -> int:
        """Picture pixels per latent pixel along one side."""
        config = self.network.config
        return int(getattr(config, "scale_factor_spatial", None) or 2 ** (len(config.block_out_channels) - 1))

    @property
    def frames(self) -> int:
        """Frames per latent frame after the first."""
        config = self.network.config
        return int(getattr(config, "scale_factor_temporal", None) or config.temporal_compression_ratio)

    def latent_frames(self, frames: int) -> int:
        return 1 + (frames - 1) // self.frames

    @torch.no_grad()
    def decode(self, latents: Tensor, *, upscale: int = 1, tiled: bool = False) -> Tensor:
        """Latents (1, C, F, h, w) -> frames (1 + frames (F - 1), H, W, 3) uint8 on the CPU, enlarged `upscale` times.

        Raises NotFinite: the autoencoder returned NaN or infinity, in float32 too.
        """
        return _to_bytes(self._finite(lambda: self._decoded(latents), tiled), upscale)

    @torch.no_grad()
    def encode(self, pixels: Tensor, *, tiled: bool = False) -> Tensor:
        """Pixels (N, 3, F, H, W) in -1..1 -> latents (N, C, f, h, w) float32 on the vae's device: the mode of the
        posterior, as the networks see it.

        Raises NotFinite: as `decode`.
        """
        return self._finite(lambda: self._encoded(pixels), tiled)

    def _finite(self, run: Callable[[], Tensor], tiled: bool) -> Tensor:
        vae = self.network
        with _tiles(vae, on=tiled or self._tiling):
            found = run()
            if not found.isfinite().all() and vae.dtype is not torch.float32:
                warn_once(
                    f"the autoencoder overflows in {vae.dtype}; such clips are repeated in float32: set vae_dtype"
                )
                with in_float32(vae):
                    found = run()
        if not found.isfinite().all():
            raise NotFinite(NAME, torch.float32)
        return found

    def _decoded(self, latents: Tensor) -> Tensor:
        return self.network.decode(self.unscaled(latents).to(self.network.dtype), return_dict=False)[0]

    def _encoded(self, pixels: Tensor) -> Tensor:
        vae = self.network
        found = vae.encode(pixels.to(vae.device, vae.dtype), return_dict=False)[0].mode()
        return self.scaled(found.float())

    def unscaled(self, latents: Tensor) -> Tensor:
        """What the decoder takes, from latents (N, C, ...) of the networks."""
        mean, std = self._scale(latents)
        return latents * std + mean

    def scaled(self, latents: Tensor) -> Tensor:
        """The reverse: what the networks see."""
        mean, std = self._scale(latents)
        return (latents - mean) / std

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config, shape = self.network.config, (1, -1, *[1] * (like.ndim - 2))
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or std is None:
            return like.new_zeros(1), like.new_tensor(1 / config.scaling_factor)
        return like.new_tensor(mean).view(shape), like.new_tensor(std).view(shape)


@contextmanager
def _tiles(vae: Any, *, on: bool) -> Generator[None]:
    before = vae.use_tiling
    vae.use_tiling = on
    try:
        yield
    finally:
        vae.use_tiling = before


def _to_bytes(pixels: Tensor, upscale: int) -> Tensor:
    """(1, 3, F, H, W) in -1..1 -> (F, H, W, 3) uint8 on the CPU. Frame by frame: a clip has gigabytes in float32."""
    return torch.stack([_frame(frame, upscale).cpu() for frame in pixels[0].unbind(1)])


def _frame(frame: Tensor, upscale: int) -> Tensor:
    shown = frame.float()[None]
    if upscale > 1:
        shown = F.interpolate(shown, scale_factor=upscale, mode="bicubic")
    return shown.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)[0].permute(1, 2, 0).contiguous()
