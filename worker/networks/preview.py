"""Latents -> a few small frames, for less than a hundredth of what a step costs.

Latent channels are almost a linear function of colour, so a 1x1 projection shows what is being drawn. It is fitted to
the autoencoder when the model loads: by least squares on synthetic pictures and what the encoder makes of them. Tiny
autoencoders, such as the demo's, are too far from linear (it would draw a red circle blue), but cheap enough to decode
the preview themselves.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from worker.networks.not_finite import NotFinite
from worker.networks.optimise import vae_decode
from worker.networks.vae_config import unscaled_latents

MOST_FRAMES = 4  # twice as many take twice as long to decode and to compress
# Multiplications for a preview, roughly: weights of the decoder x latent pixels. The demo's needs 2e8, Stable
# Diffusion's 8e11. Only on a CPU: on a GPU the decoder's memory may be what a large clip lacks.
MOST_FOR_DECODER = 1e9
PICTURES, SIDE = 64, 8  # of the fit: number, and side in latent pixels
BATCH = 16  # pictures that the autoencoder takes at once
RIDGE = 1e-3


class HostCopy:
    """Frames on their way from the device; nothing waits for them."""

    def __init__(self, frames: Tensor) -> None:
        on_gpu = frames.is_cuda
        self._frames = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=on_gpu)
        self._frames.copy_(frames, non_blocking=on_gpu)
        self._event = torch.cuda.Event() if on_gpu else None
        if self._event is not None:
            self._event.record()

    @property
    def is_complete(self) -> bool:
        return self._event is None or self._event.query()

    @property
    def frames(self) -> Any:  # numpy's types are the caller's
        """(n, h, w, 3) uint8, once the copy is complete."""
        return self._frames.numpy()


class Previewer:
    """Makes previews with one autoencoder.

    Raises:
        NotFinite: the autoencoder returned NaN or infinity for every picture, so nothing can be fitted.
    """

    def __init__(self, vae: Any, device: torch.device) -> None:
        self._vae = vae
        weights = sum(parameter.numel() for parameter in vae.decoder.parameters())
        self._decoder_pixels = MOST_FOR_DECODER / weights if device.type == "cpu" else 0.0
        weight, bias = fit(vae, device)
        # Folded into one map from the latents of the diffusion models: their scale and shift are affine too.
        zero = torch.zeros(1, weight.shape[1], 1, 1, device=device)
        shift = unscaled_latents(vae, zero).flatten()
        scale = unscaled_latents(vae, zero + 1).flatten() - shift
        self._weight, self._bias = weight * scale, bias + weight @ shift

    @torch.no_grad()
    def frames(self, latents: Tensor) -> HostCopy:
        """At most MOST_FRAMES frames of a clip (1, C, F, h, w), evenly spaced; see `stride`."""
        kept = latents[:, :, :: stride(latents.shape[2])]
        if kept[0, 0].numel() <= self._decoder_pixels:
            return HostCopy(vae_decode.decode(self._vae, kept))
        return HostCopy(colours_of(kept, self._weight, self._bias))


def colours_of(latents: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Latents (1, C, n, h, w) -> (n, h, w, 3) uint8."""
    colours = F.linear(latents[0].permute(1, 2, 3, 0), weight, bias)
    return colours.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def stride(frames: int) -> int:
    """Of how many frames of a clip a preview shows one."""
    return -(-frames // MOST_FRAMES)


@torch.no_grad()
def fit(vae: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Weight (3, C) and bias (3) that turn what the decoder takes into colours in -1..1."""
    for pairs in (_encoded, _decoded):
        colours, latents = pairs(vae, device)
        if colours.isfinite().all() and latents.isfinite().all():
            break
    else:
        raise NotFinite("autoencoder (vae)", vae.dtype)
    colours = F.interpolate(colours, size=latents.shape[-2:], mode="area")
    weight, bias = least_squares(colours, latents)
    return weight.to(device), bias.to(device)


def least_squares(colours: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (3, C) and bias (3), on the CPU, of the map from latents (N, C, h, w) to colours (N, 3, h, w)."""
    y, x = (t.transpose(0, 1).flatten(1).double().cpu() for t in (colours, latents))
    x = torch.cat([x, torch.ones_like(x[:1])])
    found = torch.linalg.solve(x @ x.T + RIDGE * x.shape[1] * torch.eye(len(x), dtype=x.dtype), x @ y.T)
    return found[:-1].T.float(), found[-1].float()


def _encoded(vae: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Synthetic pictures, and their latents. NaN without an encoder."""
    pixels = 2 ** (len(vae.config.block_out_channels) - 1)
    pictures = synthetic_pictures(SIDE * pixels).to(device)
    if getattr(vae, "encoder", None) is None:
        return pictures, torch.full((1, vae.config.latent_channels, 1, 1), torch.nan, device=device)
    return pictures, _in_batches(lambda batch: vae.encode(batch).latent_dist.mean, pictures.to(vae.dtype))


def _decoded(vae: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """What the decoder makes of smooth noise, and that noise: less like pictures, but every model has a decoder."""
    noise = torch.randn(PICTURES, vae.config.latent_channels, 3, 3, generator=Generator().manual_seed(0))
    latents = unscaled_latents(vae, F.interpolate(noise, size=(SIDE, SIDE), mode="bicubic").to(device))
    return _in_batches(lambda batch: vae.decode(batch).sample, latents.to(vae.dtype)), latents


def _in_batches(network: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return torch.cat([network(inputs[i : i + BATCH]).float() for i in range(0, len(inputs), BATCH)])


def synthetic_pictures(side: int) -> Tensor:
    """(PICTURES, 3, side, side) in -1..1: a saturated colour or a gradient, with a disc or a box of another colour."""
    generator = Generator().manual_seed(0)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(PICTURES, *(shape or (1, 1, 1)), generator=generator) * (high - low) + low

    def colour() -> Tensor:
        return between(-3, 3, 3, 1, 1).clamp(-1, 1)

    y, x = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")
    angle, first = between(0, 2 * torch.pi), colour()
    second = torch.where(between(0, 1) < 0.25, colour(), first)
    ramp = (x * angle.cos() + y * angle.sin()).clamp(-1, 1) / 2 + 0.5
    across, down = (x - between(-0.6, 0.6)).abs(), (y - between(-0.6, 0.6)).abs()
    distance = torch.where(between(0, 1) < 0.5, (across**2 + down**2).sqrt(), torch.maximum(across, down))
    inside = ((between(0.2, 0.7) - distance) * side / 2).clamp(-0.5, 0.5) + 0.5
    return (first * ramp + second * (1 - ramp)) * (1 - inside) + colour() * inside
