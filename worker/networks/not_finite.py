"""NaN or infinity in what a network returned."""

from __future__ import annotations

import torch
from torch import Tensor

from service.errors import ServiceError


class NotFinite(ServiceError):
    code = "not_finite"

    def __init__(self, network: str, dtype: torch.dtype) -> None:
        name = str(dtype).removeprefix("torch.")
        way_out = (
            "its weights are broken" if dtype is torch.float32 else f"its weights are broken, or overflow in {name}"
        )
        super().__init__(f"The {network} of this model returned NaN or infinity in {name}: {way_out}.")


def finite(x: Tensor, network: str) -> Tensor:
    """`x` itself. Waits for the device. Raises NotFinite."""
    if not torch.isfinite(x).all():
        raise NotFinite(network, x.dtype)
    return x
