"""How weights are stored in memory: their layout, and their size with shared weights counted once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

Strides = tuple[nn.Parameter, tuple[int, ...]]  # a parameter and how it was stored


def channels_last(network: nn.Module) -> list[Strides]:
    """Store 2D convolution weights channels-last, in place; weights shared with other networks stay shared.

    Returns those that were stored otherwise, for `restore_layout`.
    """
    changed: list[Strides] = []
    for parameter in network.parameters():
        if parameter.ndim == 4:
            before = parameter.stride()
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
            if parameter.stride() != before:
                changed.append((parameter, before))
    return changed


def restore_layout(changed: Iterable[Strides]) -> None:
    """Undo `channels_last`, in place. Exact strides count: kernels are chosen by those of 1x1 convolutions too."""
    for parameter, strides in changed:
        empty = torch.empty_strided(parameter.shape, strides, dtype=parameter.dtype, device=parameter.device)
        parameter.data = empty.copy_(parameter.data)


def resident_bytes(*modules: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(_storages(modules).values())


def shared_bytes(one: nn.Module, other: nn.Module) -> int:
    """Bytes that both modules use and memory holds once."""
    theirs = _storages([other])
    return sum(size for address, size in _storages([one]).items() if address in theirs)


def stored_tensors(x: Tensor) -> list[Tensor]:
    """What holds the numbers of a parameter: itself, or, of a quantised one, its rounded numbers and their scales."""
    flatten = getattr(x, "__tensor_flatten__", None)  # of torch's protocol for tensors made of others
    return [x] if flatten is None else [getattr(x, name) for name in flatten()[0]]


def _storages(modules: Iterable[nn.Module]) -> dict[int, int]:
    """Size in bytes by address."""
    tensors: Iterable[Tensor] = (x for module in modules for x in (*module.parameters(), *module.buffers()))
    storages = (part.untyped_storage() for tensor in tensors for part in stored_tensors(tensor))
    return {storage.data_ptr(): storage.nbytes() for storage in storages}
