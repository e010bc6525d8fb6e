"""Values with tensors as bytes for another rank, which finds the tensors on its own device."""

from __future__ import annotations

import io
from typing import Any

import torch


def packed(value: Any) -> bytes:
    """Any value that can be pickled: texts, arguments of networks, a first frame."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def unpacked(data: bytes, device: torch.device) -> Any:
    """Only for bytes of a process that this one belongs to: unpickling runs code."""
    return torch.load(io.BytesIO(data), map_location=device, weights_only=False)
