"""Latents of a time-compressing autoencoder -> a few small frames: a linear map of their channels.

The map is fitted to what the encoder makes of single pictures, and is used for the latent frames of later moments too,
where it is less exact: they also say what changes between their frames.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.networks.not_finite import NotFinite
from worker.networks.preview import BATCH, HostCopy, colours_of, least_squares, stride, synthetic_pictures
from worker.networks.video_transformers.vae import NAME, TemporalVae

SIDE = 8  # of the pictures, in latent pixels


class TemporalPreviewer:
    """Makes previews with one autoencoder. Raises NotFinite: it returned NaN or infinity for every picture."""

    def __init__(self, vae: TemporalVae, device: torch.device) -> None:
        pictures = synthetic_pictures(SIDE * vae.pixels)
        latents = torch.cat([vae.encode(batch[:, :, None].to(device)) for batch in pictures.split(BATCH)])[:, :, 0]
        if not latents.isfinite().all():
            raise NotFinite(NAME, vae.network.dtype)
        colours = F.interpolate(pictures, size=latents.shape[-2:], mode="area")
        self._weight, self._bias = (part.to(device) for part in least_squares(colours, latents))

    @torch.no_grad()
    def frames(self, latents: Tensor) -> HostCopy:
        """At most MOST_FRAMES latent frames of a clip (1, C, f, h, w), evenly spaced, one picture each."""
        return HostCopy(colours_of(latents[:, :, :: stride(latents.shape[2])], self._weight, self._bias))
