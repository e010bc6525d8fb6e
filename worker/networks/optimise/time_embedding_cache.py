"""Time embeddings are computed once per timestep: a run has a few dozen, each used by several calls and later jobs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class TimeEmbeddingCache:
    """Replaces the time embedding of a UNet, and the frame rate embedding of VideoCrafter's.

    The cache is used inside `active` only; direct calls of the network compute the embedding as usual.
    """

    def __init__(self, network: Any) -> None:  # Any: diffusers' UNets share no type
        self._timestep: float | None = None
        self._rows = [_cache(module, lambda: self._timestep) for module in (network.time_proj, network.time_embedding)]
        if hasattr(network, "fps_embedding"):
            for module in (network.fps_proj, network.fps_embedding):
                self._rows.append(_cache(module, lambda: None if self._timestep is None else network.fps))

    def clear(self) -> None:
        """To be called when weights have changed."""
        for rows in self._rows:
            rows.clear()

    @contextmanager
    def active(self, timestep: float) -> Generator[None]:
        self._timestep = timestep
        try:
            yield
        finally:
            self._timestep = None


def _cache(module: nn.Module, current_key: Callable[[], Hashable | None]) -> dict[Hashable, Tensor]:
    """Keep one row of the output per key, since all rows are equal; a key of None bypasses the cache. Returns them."""
    rows: dict[Hashable, Tensor] = {}
    forward: Callable[..., Tensor] = module.forward

    def cached_forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        key = current_key()
        if key is None:
            return forward(x, *args, **kwargs)
        if key not in rows:
            rows[key] = forward(x[:1], *args, **kwargs)
        return rows[key].expand(x.shape[0], -1)

    module.forward = cached_forward
    return rows
