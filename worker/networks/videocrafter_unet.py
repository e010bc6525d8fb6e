"""VideoCrafter2's network in its diffusers port: a UNet3DConditionModel that is also conditioned on the frame rate."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import copy
import functools
from typing import Any, cast

import torch
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import Tensor, nn


class VideoCrafterUNet(UNet3DConditionModel):
    """Called as `unet(x, timestep, encoder_hidden_states, fps=...)`; x and the result are (B, C, F, h, w).

    The frame rate is embedded like the timestep, by separate layers, and added to it.
    """

    @functools.wraps(UNet3DConditionModel.__init__)  # diffusers reads the configuration's names off the signature
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        width = cast("Any", self.config).block_out_channels[0]
        self.fps_proj = copy.copy(self.time_proj)  # has no weights; separate, because TimeEmbeddingCache patches both
        self.fps_embedding = TimestepEmbedding(width, 4 * width)
        self.time_embedding.register_forward_hook(self._add_fps)
        self.fps = 0

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, sample: Tensor, timestep: Tensor | int, encoder_hidden_states: Tensor, *, fps: int
    ) -> Tensor:
        self.fps = fps
        return super().forward(sample, timestep, encoder_hidden_states=encoder_hidden_states, return_dict=False)[0]

    def _add_fps(self, _module: nn.Module, _args: object, emb: Tensor) -> Tensor:
        # Filled on the device: uploading a number would synchronise with it.
        fps = torch.full((1,), self.fps, device=emb.device)
        return emb + cast("Tensor", self.fps_embedding(self.fps_proj(fps).to(emb.dtype)))
