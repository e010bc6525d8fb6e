"""diffusers' video transformers, called as the sampler calls a UNet."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor

from service.catalog.optimise import Optimise
from worker.networks.network_classes import Network
from worker.networks.optimise import BlockCompiler
from worker.networks.optimise.attention_backend import AttentionSwitch
from worker.networks.optimise.compile_blocks import CompiledBlocks

Texts = tuple[Tensor, ...]  # one per CFG branch, (B, tokens, dim)
Call = Callable[[Network, Tensor, Tensor, Tensor], Tensor]  # transformer, x, time, text -> prediction


class VideoTransformer:
    """Called as `network(x, timestep, encoder_hidden_states=texts)`, see `sampler.denoisers.GuidedDenoiser`.

    x is (N, C, F, h, w) of clips, or (N, C, h, w) of frames, each of which is a clip of one latent frame. The time is
    float32 whatever the network's dtype: bfloat16 cannot distinguish 999 from 996.

    Args:
        transformer: diffusers' network, of all noise levels or of those above `boundary`.
        low_noise: the network of the levels below.
        boundary: a timestep. The level that x is at decides, in moves towards noise too.
        call: how the networks are called.
        optimise: how both run; None: with the defaults. They have no caches and no 2D convolutions.
        compiler: for `optimise.compile`.
    """

    native_cfg = True

    def __init__(
        self,
        transformer: Network,
        *,
        low_noise: Network | None = None,
        boundary: float = 0.0,
        call: Call | None = None,
        optimise: Optimise | None = None,
        compiler: BlockCompiler | None = None,
    ) -> None:
        self._call = call or wan
        self.transformer, self.low_noise, self.boundary = transformer, low_noise, boundary
        own = transformer.config
        self.config = SimpleNamespace(
            in_channels=own.out_channels, cross_attention_dim=getattr(own, "text_dim", None) or own.text_embed_dim
        )
        self._networks = [transformer, *([] if low_noise is None else [low_noise])]
        self._attention = [AttentionSwitch(network) for network in self._networks]
        self._blocks = dict[int, CompiledBlocks]()
        self.use(optimise or Optimise(), compiler)

    def use(self, optimise: Optimise, compiler: BlockCompiler | None = None) -> None:
        """Switch to other optimisations between two jobs. Raises ConfigurationError as `AttentionSwitch`."""
        for attention in self._attention:
            attention.use(optimise.attention_backend)
        for blocks in self._blocks.values():
            blocks.discard()
        compiler = (compiler or BlockCompiler()) if optimise.compile else None
        self._blocks = {id(network): CompiledBlocks(network, compiler) for network in self._networks if compiler}

    def __call__(self, x: Tensor, timestep: float, *, encoder_hidden_states: Texts, call: Call | None = None) -> Tensor:
        """Args:
        call: how the transformer is called, for conditions next to the text; None: with x, time and text alone.
        """
        network = self.expert(timestep)
        clips = x if x.ndim == 5 else x.unsqueeze(2)
        text = torch.cat(encoder_hidden_states)
        if len(clips) > len(text):  # frames of a clip
            text = text.repeat_interleave(len(clips) // len(text), dim=0)
        time = torch.full((len(clips),), float(timestep), dtype=torch.float32, device=x.device)

        def run() -> Tensor:
            return (call or self._call)(network, clips, time, text)

        with self._attention[0].active():
            if network.is_cache_enabled:
                # What it keeps is of one kind of call. The blocks run uncompiled: its hooks differ from block to block,
                # and each would be compiled by itself.
                with network.cache_context(f"{tuple(x.shape)} {[id(text) for text in encoder_hidden_states]}"):
                    found = run()
            else:
                blocks = self._blocks.get(id(network))
                found = blocks.run(run) if blocks else run()
        return found if x.ndim == 5 else found.squeeze(2)

    def expert(self, timestep: float) -> Network:
        """The network of a noise level."""
        return self.transformer if self.low_noise is None or timestep >= self.boundary else self.low_noise

    def clear_caches(self) -> None:
        """There are none."""


def wan(network: Network, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
    return network(x, time, text, return_dict=False)[0]


def cogvideox(network: Network, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
    """CogVideoX has frames before channels, and gets the positions of its tokens from outside."""
    positions = _positions(network.config, x) if network.config.use_rotary_positional_embeddings else None
    found = network(x.transpose(1, 2), text, time, image_rotary_emb=positions, return_dict=False)[0]
    return found.transpose(1, 2)


def _positions(config: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embeddings of the tokens, on the grid of the training size (arXiv:2408.06072, section 2.2)."""
    grid = x.shape[-2] // config.patch_size, x.shape[-1] // config.patch_size
    trained = config.sample_width // config.patch_size, config.sample_height // config.patch_size
    crop = get_resize_crop_region_for_grid(grid, *trained)
    frames, dim = x.shape[2], config.attention_head_dim
    found = get_3d_rotary_pos_embed(dim, crop, grid_size=grid, temporal_size=frames, device=x.device)
    return found[0], found[1]
