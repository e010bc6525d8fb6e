"""Latents of another height and width: clean ones, because noise changes its level when it is resized."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resized(clean: Tensor, factor: float) -> Tensor:
    """Clean latents (B, C, F, h, w) with height and width times `factor`, rounded; bicubic, smoothed when they shrink.

    Enlarging and then shrinking by the inverse gives the same height and width back.
    """
    b, c, f, h, w = clean.shape
    size = max(1, round(h * factor)), max(1, round(w * factor))
    frames = clean.transpose(1, 2).reshape(b * f, c, h, w)
    frames = F.interpolate(frames, size=size, mode="bicubic", align_corners=False, antialias=True)
    return frames.view(b, f, c, *size).transpose(1, 2)
