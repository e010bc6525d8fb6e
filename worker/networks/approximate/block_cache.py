"""diffusers' caches for transformers: First Block Cache and TaylorSeer (arXiv:2503.06923)."""

# pyright: reportPrivateImportUsage=false, reportPrivateUsage=false
from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig

from service.jobs.step_cache import FirstBlockCache, TaylorSeerCache


@contextmanager
def block_cache(networks: Sequence[Any], cache: FirstBlockCache | TaylorSeerCache) -> Generator[Callable[[], None]]:
    """Use the cache in calls inside, which need a `cache_context`. Yields a function that empties it.

    Args:
        networks: diffusers' transformers.
    """

    def forget() -> None:
        for network in networks:
            network._reset_stateful_cache()

    with ExitStack() as stack:
        for network in networks:
            network.enable_cache(_config(cache))
            stack.callback(network.disable_cache)
        yield forget


def _config(cache: FirstBlockCache | TaylorSeerCache) -> FirstBlockCacheConfig | TaylorSeerCacheConfig:
    if isinstance(cache, FirstBlockCache):
        return FirstBlockCacheConfig(threshold=cache.threshold)
    # Lite mode keeps the output of the last layer alone. The patterns of the full one miss Wan's and CogVideoX's
    # attention, whose names end in a number, and it would keep several tensors for each of 40 blocks.
    return TaylorSeerCacheConfig(
        cache_interval=cache.interval,
        max_order=cache.order,
        taylor_factors_dtype=torch.float32,
        use_lite_mode=True,
    )
