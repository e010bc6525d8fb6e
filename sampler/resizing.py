"""Latents of another height and width: clean ones, because noise changes its level when it is resized."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from sampler.denoise_and_goback_moves import ResizingMove
from sampler.plan import Plan


def resized(clean: Tensor, factor: float) -> Tensor:
    """Clean latents (B, C, F, h, w) with height and width times `factor`, rounded; bicubic, smoothed when they shrink.

    Enlarging and then shrinking by the inverse gives the same height and width back.
    """
    b, c, f, h, w = clean.shape
    size = _scaled(h, factor), _scaled(w, factor)
    frames = clean.transpose(1, 2).reshape(b * f, c, h, w)
    frames = F.interpolate(frames, size=size, mode="bicubic", align_corners=False, antialias=True)
    return frames.view(b, f, c, *size).transpose(1, 2)


def shape_after(plan: Plan, shape: Sequence[int], steps: int) -> tuple[int, ...]:
    """Shape of the latents after the first `steps` steps of a plan that starts with latents of `shape`."""
    *outer, h, w = shape
    for move in (move for moves in plan.steps[:steps] for move in moves):
        if isinstance(move, ResizingMove):
            h, w = _scaled(h, move.factor), _scaled(w, move.factor)
    return *outer, h, w


def _scaled(side: int, factor: float) -> int:
    return max(1, round(side * factor))
