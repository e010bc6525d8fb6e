"""diffusers' video transformers, called as the sampler calls a UNet."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from worker.networks.network_classes import Network
from worker.networks.optimise import BlockCompiler
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
        compiler: compiles the blocks of both.
    """

    native_cfg = True

    def __init__(
        self,
        transformer: Network,
        *,
        low_noise: Network | None = None,
        boundary: float = 0.0,
        compiler: BlockCompiler | None = None,
    ) -> None:
        self.transformer, self.low_noise, self.boundary = transformer, low_noise, boundary
        own = transformer.config
        self.config = SimpleNamespace(
            in_channels=own.out_channels, cross_attention_dim=getattr(own, "text_dim", None) or own.text_embed_dim
        )
        networks = [transformer, *([] if low_noise is None else [low_noise])]
        self._blocks = {id(network): CompiledBlocks(network, compiler) for network in networks} if compiler else {}

    def __call__(self, x: Tensor, timestep: float, *, encoder_hidden_states: Texts, call: Call | None = None) -> Tensor:
        """Args:
        call: how the transformer is called, for conditions next to the text; None: with x, time and text.
        """
        network = self.expert(timestep)
        clips = x if x.ndim == 5 else x.unsqueeze(2)
        text = torch.cat(encoder_hidden_states)
        if len(clips) > len(text):  # frames of a clip
            text = text.repeat_interleave(len(clips) // len(text), dim=0)
        time = torch.full((len(clips),), float(timestep), dtype=torch.float32, device=x.device)

        def run() -> Tensor:
            return (call or plain)(network, clips, time, text)

        blocks = self._blocks.get(id(network))
        found = blocks.run(run) if blocks else run()
        return found if x.ndim == 5 else found.squeeze(2)

    def expert(self, timestep: float) -> Network:
        """The network of a noise level."""
        return self.transformer if self.low_noise is None or timestep >= self.boundary else self.low_noise

    def clear_caches(self) -> None:
        """There are none."""


def plain(network: Network, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
    return network(x, time, text, return_dict=False)[0]
