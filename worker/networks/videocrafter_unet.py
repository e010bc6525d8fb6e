"""VideoCrafter2's network in its diffusers port: a UNet3DConditionModel that is also conditioned on the frame rate."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import Tensor, nn

FPS_PREFIX = "fps_embedding."


class VideoCrafterUNet(nn.Module):
    """Called as `unet(x, timestep, encoder_hidden_states, fps=...)`; x and the result are (B, C, F, h, w).

    The frame rate is embedded like the timestep, by separate layers, and added to it. Weights are named as in the port:
    those of the 3D UNet and `fps_embedding.*`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        without_fps = {name: value for name, value in config.items() if name != "fps_cond"}
        kind: Any = UNet3DConditionModel  # diffusers is only partly typed
        self.unet: Any = kind.from_config(without_fps)
        width = self.unet.config.block_out_channels[0]
        self.fps_proj = copy.copy(
            self.unet.time_proj
        )  # has no weights; separate, because TimeEmbeddingCache patches both
        self.fps_embedding = TimestepEmbedding(width, 4 * width)
        self.unet.time_embedding.register_forward_hook(self._add_fps)
        self.fps = 0

    @property
    def config(self) -> Any:
        return self.unet.config

    def set_attn_processor(self, processor: Any) -> None:
        self.unet.set_attn_processor(processor)

    def forward(self, sample: Tensor, timestep: Tensor | int, encoder_hidden_states: Tensor, *, fps: int) -> Tensor:
        self.fps = fps
        return self.unet(sample, timestep, encoder_hidden_states=encoder_hidden_states, return_dict=False)[0]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """With the port's names."""
        inner: dict[str, Tensor] = super().state_dict(*args, **kwargs)  # pyright: ignore[reportUnknownMemberType]
        return {name.removeprefix("unet."): value for name, value in inner.items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Raises RuntimeError if names or shapes differ from the port's."""
        named = {name if name.startswith(FPS_PREFIX) else f"unet.{name}": value for name, value in weights.items()}
        self.load_state_dict(named, assign=True)

    def _add_fps(self, _module: nn.Module, _args: object, emb: Tensor) -> Tensor:
        # Filled on the device: uploading a number would synchronise with it.
        fps = torch.full((1,), self.fps, device=emb.device)
        return emb + cast("Tensor", self.fps_embedding(self.fps_proj(fps).to(emb.dtype)))
