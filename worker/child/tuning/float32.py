"""The reference of all configurations: the networks in float32, with the half-precision weights that are loaded."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

HALF = (torch.float16, torch.bfloat16)


class InFloat32(TorchFunctionMode):
    """Every operation inside gets its half-precision tensors in float32 and returns float32. Weights are converted one
    layer at a time, so that no second copy of them needs memory, and the networks stay as they are."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") == "__get__":  # of an attribute, such as a tensor's dtype or shape
            return func(*args, **(kwargs or {}))
        return func(*_float32(args), **_float32(kwargs or {}))


@contextmanager
def float32() -> Generator[None]:
    """Calls of networks inside are those of float32, also without TF32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), InFloat32():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _float32(x: Any) -> Any:
    if type(x) in (tuple, list):
        return type(x)(map(_float32, x))
    if type(x) is dict:
        return {name: _float32(value) for name, value in cast("dict[str, Any]", x).items()}
    if isinstance(x, Tensor) and x.dtype in HALF:
        with torch._C.DisableTorchFunction():  # pyright: ignore[reportPrivateUsage]  else this would be asked again
            return x.float()
    return torch.float32 if isinstance(x, torch.dtype) and x in HALF else x
