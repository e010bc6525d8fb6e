"""Noise: where a run starts, and what it draws on its way. It depends on the seed alone, never on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from sampler.errors import IncompatibleInputs


def seeded_noise(
    shape: Sequence[int], seed: int | Sequence[int], *, device: torch.device | str | None = None
) -> Tensor:
    """Standard normal latents (B, C, F, h, w) float32, drawn on the CPU: one seed, one start, on any card.

    A sequence of seeds gives each clip of the batch its own, so a batch equals its clips run alone.
    Raises IncompatibleInputs if there are not as many seeds as clips.
    """
    if isinstance(seed, int):
        return torch.randn(tuple(shape), generator=Generator().manual_seed(seed)).to(device)
    if len(seed) != shape[0]:
        raise IncompatibleInputs(
            f"seed has {len(seed)} values for a batch of {shape[0]}; give one for each clip, or one integer"
        )
    clips = [torch.randn(tuple(shape[1:]), generator=Generator().manual_seed(s)) for s in seed]
    return torch.stack(clips).to(device)


def fresh_noise(
    like: Tensor, generator: Generator | Sequence[Generator] | None = None, *, by_frame: bool = False
) -> Tensor:
    """Standard normal noise of the shape (B, C, F, h, w) and on the device of `like`, float32.

    Drawn on the generator's device; a CPU generator gives the same noise on every card. One generator for each clip
    makes a batch equal its clips run alone; None is torch's global one. by_frame: the numbers are drawn in the order
    (B*F, C, h, w), as diffusers does for a scheduler that is handed frames.
    """
    if isinstance(generator, Sequence):
        clips = [fresh_noise(like[i : i + 1], own, by_frame=by_frame) for i, own in enumerate(generator)]
        return torch.cat(clips)
    b, c, f, h, w = like.shape
    device = like.device if generator is None else generator.device
    noise = torch.randn((b, f, c, h, w) if by_frame else (b, c, f, h, w), generator=generator, device=device)
    return (noise.transpose(1, 2) if by_frame else noise).to(like.device, non_blocking=True)
