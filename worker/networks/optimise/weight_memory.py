"""How weights are stored in memory: their layout, and their size with shared weights counted once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def channels_last(network: nn.Module) -> None:
    """Store 2D convolution weights channels-last, in place; weights shared with other networks stay shared."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)


def resident_bytes(*modules: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(_storages(modules).values())


def shared_bytes(one: nn.Module, other: nn.Module) -> int:
    """Bytes that both modules use and memory holds once."""
    theirs = _storages([other])
    return sum(size for address, size in _storages([one]).items() if address in theirs)


def _storages(modules: Iterable[nn.Module]) -> dict[int, int]:
    """Size in bytes by address."""
    tensors: Iterable[Tensor] = (x for module in modules for x in (*module.parameters(), *module.buffers()))
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}
