"""How Wan keeps a given first frame: in further input channels (2.1, 2.2 A14B), or by a time for each token (2.2 5B).

Channels: next to the noisy latents the network reads those of a clip that is the picture and grey frames, and a mask of
the given frames; Wan 2.1 also reads what CLIP sees. Tokens: the first latent frame is the picture's, at time 0.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.networks.network_classes import Network


@dataclass(frozen=True)
class ChannelCondition:
    """
    Args:
        channels: (1, 4 + C, f, h, w): the mask, then the latents.
        embeddings: (1, n, dim) of CLIP, for networks with `image_dim`.
    """

    channels: Tensor
    embeddings: Tensor | None = None

    @classmethod
    def of(cls, latents: Tensor, stride: int, embeddings: Tensor | None) -> ChannelCondition:
        """From the latents (1, C, f, h, w) of the picture and grey frames; `stride` frames are one latent frame."""
        mask = latents.new_zeros(1, stride, *latents.shape[2:])
        mask[:, :, 0] = 1
        return cls(torch.cat([mask, latents], dim=1), embeddings)

    def __call__(self, network: Network, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        seen = torch.cat([x, self.channels.to(x).expand(len(x), *self.channels.shape[1:])], dim=1)
        image = None if self.embeddings is None else self.embeddings.to(x).expand(len(x), -1, -1)
        return network(seen, time, text, image, return_dict=False)[0]


@dataclass(frozen=True)
class TokenCondition:
    """
    Args:
        latents: (1, C, 1, h, w) of the picture.
    """

    latents: Tensor

    def __call__(self, network: Network, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        """The velocity; of the first latent frame that which leads to the picture: (x - picture) / s."""
        given = self.latents.to(x)
        seen = torch.cat([given.expand(len(x), *given.shape[1:]), x[:, :, 1:]], dim=2)
        _, patch_height, patch_width = network.config.patch_size
        _, _, frames, height, width = x.shape
        of_frame = (height // patch_height) * (width // patch_width)
        later = (torch.arange(frames * of_frame, device=x.device) >= of_frame).to(time.dtype)
        velocity = network(seen, time[:, None] * later, text, return_dict=False)[0]
        to_picture = (x[:, :, :1].float() - self.latents.float()) / (time.view(-1, 1, 1, 1, 1) / 1000)
        return torch.cat([to_picture.to(velocity.dtype), velocity[:, :, 1:]], dim=2)


Condition = ChannelCondition | TokenCondition
