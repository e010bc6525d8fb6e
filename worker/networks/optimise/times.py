"""Time embeddings from a table: a run has a few dozen timesteps, each seen by several calls and by every later job."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor, nn

from worker.networks.optimise.call import Call


def remember_times(network: Any, call: Call) -> None:
    """For a UNet, or one that wraps a UNet and is told the frame rate."""
    unet = getattr(network, "unet", network)
    for module in (unet.time_proj, unet.time_embedding):
        remember(module, lambda: call.timestep)
    if hasattr(network, "fps_embedding"):
        for module in (network.fps_proj, network.fps_embedding):
            remember(module, lambda: None if call.timestep is None else network.fps)


def remember(module: nn.Module, key: Callable[[], Hashable | None]) -> None:
    """Compute what `module` returns once per key and keep it, one row: all rows are the same. None: compute it."""
    table: dict[Hashable, Tensor] = {}
    forward: Callable[..., Tensor] = module.forward

    def look_up(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        now = key()
        if now is None:
            return forward(x, *args, **kwargs)
        if now not in table:
            table[now] = forward(x[:1], *args, **kwargs)
        return table[now].expand(x.shape[0], -1)

    module.forward = look_up
