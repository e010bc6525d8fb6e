"""A network with its short cuts, called as the sampler calls a network with `native_cfg`."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from service.catalog.model_entry import Optimise
from worker.networks.optimise.call import Call, Texts
from worker.networks.optimise.compiled import Compiler
from worker.networks.optimise.halves import compute_halves_once
from worker.networks.optimise.keys import TextKeys, read_text_once
from worker.networks.optimise.layout import channels_last
from worker.networks.optimise.times import remember_times


class OptimisedNetwork:
    """`unet(x, timestep, encoder_hidden_states=texts)`, see `sampler.denoisers.GuidedDenoiser`.

    The UNet itself is changed, but whoever calls it directly gets what it always gave. `keys` may be another network's:
    then weights that both have are applied to a text once. So may `compiler`, which is for networks that compile.
    """

    native_cfg = True

    def __init__(self, network: Any, optimise: Optimise, keys: TextKeys, compiler: Compiler | None = None) -> None:
        self.network = network  # any of diffusers' UNets, or VideoCrafter's around one
        unet = getattr(network, "unet", network)
        self._call, self._timesteps = Call(), dict[int, Tensor]()
        self._repeats_text = not hasattr(unet, "transformer_in")  # a 3D UNet repeats by itself
        self._reading = read_text_once(unet, keys) if optimise.text_once else None
        if optimise.halves_once:
            compute_halves_once(unet, self._call)
        if optimise.time_table:
            remember_times(network, self._call)
        if optimise.channels_last:
            channels_last(unet)
        if optimise.compile:
            (compiler or Compiler()).compile(unet, self._call)

    @property
    def config(self) -> Any:
        return self.network.config

    def __call__(self, x: Tensor, timestep: int, *, encoder_hidden_states: Texts, **network_args: Any) -> Any:
        texts = encoder_hidden_states
        reading = self._reading.under_way(texts) if self._reading else nullcontext()
        with reading, self._call.under_way(timestep, texts):
            text = self._text(texts, x)
            return self.network(x, self._timestep(timestep, x), encoder_hidden_states=text, **network_args)

    def _text(self, texts: Texts, x: Tensor) -> Tensor:
        if self._reading:
            return texts[0][:, :0]  # cross-attention knows it already: nothing travels through the network
        text = torch.cat(texts)
        if not self._repeats_text:
            return text
        frames = x.shape[2] if x.ndim == 5 else x.shape[0] // text.shape[0]
        return text.repeat_interleave(frames, dim=0)

    def _timestep(self, timestep: int, x: Tensor) -> Tensor:
        if timestep not in self._timesteps:  # filled on the device itself: an uploaded number would be waited for
            self._timesteps[timestep] = torch.full((), timestep, dtype=torch.int64, device=x.device)
        return self._timesteps[timestep]
