"""The order of weights in memory: channels last, which is how fast convolutions want them, on any device."""

from __future__ import annotations

import torch
from torch import nn


def channels_last(network: nn.Module) -> None:
    """In place: parameters that another network holds too stay shared, and exact. Weights of 3D convolutions stay."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
