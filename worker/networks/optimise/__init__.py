"""Optimisations of the networks, each with a switch in the model's registry entry; results differ by rounding only."""

from worker.networks.optimise.compile_blocks import BlockCompiler
from worker.networks.optimise.optimised_network import OptimisedNetwork
from worker.networks.optimise.text_kv_cache import TextKVCache

__all__ = ["BlockCompiler", "OptimisedNetwork", "TextKVCache"]
