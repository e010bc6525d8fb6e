"""How much memory networks hold, where what they share counts once."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


def resident_bytes(*modules: nn.Module) -> int:
    """Of all parameters and buffers, by their storages."""
    return sum(_storages(_tensors(modules)).values())


def shared_bytes(one: nn.Module, other: nn.Module) -> int:
    """What both hold and is there once."""
    ours, theirs = _storages(_tensors([one])), _storages(_tensors([other]))
    return sum(size for place, size in ours.items() if place in theirs)


def _tensors(modules: Iterable[nn.Module]) -> Iterable[Tensor]:
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Size in bytes by address."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}
