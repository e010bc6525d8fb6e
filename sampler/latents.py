"""Where a run starts: noise that depends on the seed alone, never on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def seeded_noise(
    shape: Sequence[int], seed: int | Sequence[int], *, device: torch.device | str | None = None
) -> Tensor:
    """Standard normal latents (B, C, F, h, w) float32, drawn on the CPU: one seed, one start, on any card.

    A sequence of seeds gives each clip of the batch its own, so a batch equals its clips run alone.
    Raises ValueError if there are not as many seeds as clips.
    """
    if isinstance(seed, int):
        return torch.randn(tuple(shape), generator=Generator().manual_seed(seed)).to(device)
    if len(seed) != shape[0]:
        raise ValueError(
            f"seed has {len(seed)} values for a batch of {shape[0]}; give one for each clip, or one integer"
        )
    clips = [torch.randn(tuple(shape[1:]), generator=Generator().manual_seed(s)) for s in seed]
    return torch.stack(clips).to(device)
