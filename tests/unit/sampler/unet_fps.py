"""A stand-in for VideoCrafter's UNet: diffusers' UNet3DConditionModel and, beside the time, the frame rate.

Its weights have the names of the diffusers port (`fps_embedding.*`), so the golden file's fit.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet3DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn


class UNet3DWithFps(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.unet = UNet3DConditionModel(**{k: v for k, v in config.items() if k != "fps_cond"})
        width = self.unet.config.block_out_channels[0]
        self.fps_embedding = TimestepEmbedding(width, 4 * width)
        self.unet.time_embedding.register_forward_hook(self._add_fps)
        self.fps = 0

    @property
    def config(self) -> Any:
        return self.unet.config

    def load(self, weights: dict[str, Tensor]) -> None:
        fps = {k.removeprefix("fps_embedding."): v for k, v in weights.items() if k.startswith("fps_embedding.")}
        self.fps_embedding.load_state_dict(fps)
        self.unet.load_state_dict({k: v for k, v in weights.items() if not k.startswith("fps_embedding.")})

    def forward(self, x: Tensor, timestep: int, encoder_hidden_states: Tensor, fps: int) -> Tensor:
        self.fps = fps
        return self.unet(x, timestep, encoder_hidden_states=encoder_hidden_states).sample

    def _add_fps(self, _module: nn.Module, _args: object, emb: Tensor) -> Tensor:
        return emb + self.fps_embedding(self.unet.time_proj(torch.tensor([self.fps]))).to(emb.dtype)
