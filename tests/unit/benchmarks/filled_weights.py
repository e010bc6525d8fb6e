"""Weights that depend on nothing but the names and shapes of parameters: goldens need not contain them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn


def filled_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """A weight per name. RandomState's stream is frozen by numpy, so that it is the same in every version."""
    return {name: _filled(name, tuple(shape)) for name, shape in shapes.items()}


def filled(module: nn.Module) -> dict[str, Tensor]:
    """Weights for all parameters and buffers of the module's state dict."""
    return filled_state({name: value.shape for name, value in module.state_dict().items()})


def _filled(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        values = 1 + 0.2 * np.abs(values)
    elif len(shape) > 1:
        values = values / math.sqrt(math.prod(shape[1:]))
    elif name.endswith(".weight"):  # of a normalisation
        values = 1 + 0.2 * values
    else:
        values = 0.2 * values
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def frames(shape: tuple[int, ...], seed: int) -> Tensor:
    """uint8, the same in every version of numpy."""
    return torch.from_numpy(np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8))
