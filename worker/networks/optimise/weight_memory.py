"""How weights are stored in memory: their layout, and their size with shared weights counted once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def channels_last(network: nn.Module) -> list[nn.Parameter]:
    """Store 2D convolution weights channels-last, in place; weights shared with other networks stay shared.

    Returns those that were stored otherwise, for `contiguous`.
    """
    changed: list[nn.Parameter] = []
    for parameter in network.parameters():
        if parameter.ndim == 4:
            if not parameter.is_contiguous(memory_format=torch.channels_last):
                changed.append(parameter)
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return changed


def contiguous(parameters: Iterable[nn.Parameter]) -> None:
    """Undo `channels_last`, in place."""
    for parameter in parameters:
        parameter.data = parameter.data.contiguous()


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
