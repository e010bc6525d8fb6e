"""Toy networks with a closed-form output; they record how they were called."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor


class Constant:
    """The same epsilon everywhere: `uncond` for text zeros, `cond` for text ones."""

    def __init__(self, uncond: float, cond: float | None = None) -> None:
        self.uncond, self.cond = uncond, uncond if cond is None else cond
        self.calls: list[tuple[tuple[int, ...], int]] = []

    def __call__(self, x: Tensor, timestep: int, encoder_hidden_states: Tensor) -> SimpleNamespace:
        self.calls.append((tuple(x.shape), timestep))
        share = encoder_hidden_states.mean(dim=(1, 2)).repeat_interleave(len(x) // len(encoder_hidden_states))
        value = self.uncond + (self.cond - self.uncond) * share
        return SimpleNamespace(sample=value.view(-1, *[1] * (x.ndim - 1)).expand_as(x))


class Smooth:
    """A nonlinear network of neighbouring pixels, timestep and text; with `mixing` also of other frames."""

    def __init__(self, phase: float, *, mixing: bool = False) -> None:
        self.phase, self.mixing = phase, mixing

    def __call__(self, x: Tensor, timestep: int, encoder_hidden_states: Tensor) -> Tensor:
        text = encoder_hidden_states.mean(dim=(1, 2)).repeat_interleave(len(x) // len(encoder_hidden_states))
        y = 0.6 * x + 0.2 * x.roll(1, dims=-1) + 0.1 * x.roll(1, dims=-2)
        if self.mixing:
            y = y + 0.3 * x.roll(1, dims=2)
        return torch.tanh(y + text.view(-1, *[1] * (x.ndim - 1)) + self.phase + timestep / 1000)


def texts(batch: int = 1) -> tuple[Tensor, Tensor]:
    """(cond, uncond) for the networks above."""
    return torch.ones(batch, 3, 2), torch.zeros(batch, 3, 2)
