"""Bytes that a call allocates at its peak, counted on torch's meta device: no weights, no card.

Counted are all tensors that exist at one time. Attention counts as its output, as fused kernels compute it; what
kernels and the allocator need besides is not counted.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Attention(TorchFunctionMode):
    """Attention without the matrix of weights, which the meta device would compute."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return given["query"].new_empty((*given["query"].shape[:-1], given["value"].shape[-1]))
        return func(*args, **(kwargs or {}))


class _Live(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._tensors = Counter[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        known = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(found):
            if isinstance(x, Tensor):
                self._add(x, known)
        return found

    def _add(self, x: Tensor, known: set[int]) -> None:
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not self._tensors[key]:
            if key in known:  # a view of what existed before
                return
            self.now += size
            self.peak = max(self.peak, self.now)
        self._tensors[key] += 1
        weakref.finalize(x, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._tensors[key] -= 1
        if not self._tensors[key]:
            self.now -= size


def peak_bytes(call: Callable[[], object]) -> int:
    """Of a call of networks and inputs on the meta device; these themselves are not counted."""
    with torch.no_grad(), _Live() as live, _Attention():
        call()
    return live.peak
