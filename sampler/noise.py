"""Gaussian noise: the start of a run and what its moves draw. On a CPU generator it depends on the seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from sampler.errors import IncompatibleInputs
from sampler.plan import Plan
from sampler.validation import clip_tensor, seeded_generator

Generators = Generator | Sequence[Generator] | None  # None: torch's global generator


def seeded_noise(
    shape: Sequence[int], seed: int | Sequence[int], *, device: torch.device | str | None = None
) -> Tensor:
    """Standard normal start latents, drawn on the CPU: one seed gives the same noise on every device.

    Args:
        shape: (batch, channels, frames, height, width) of the latents.
        seed: one integer for the whole batch, or one for each clip; then a batch equals its clips run alone.
        device: where the result is moved to. None: it stays on the CPU.

    Returns:
        Latents of `shape`, float32.

    Raises:
        IncompatibleInputs: the number of seeds is not the batch size.
        InvalidSetting: a seed is not a whole number in -2**63..2**64 - 1.
    """
    if not isinstance(seed, Sequence):
        return torch.randn(tuple(shape), generator=seeded_generator(seed)).to(device)
    if len(seed) != shape[0]:
        raise IncompatibleInputs(
            f"seed has {len(seed)} values for a batch of {shape[0]}; give one for each clip, or one integer"
        )
    clips = [torch.randn(tuple(shape[1:]), generator=seeded_generator(s)) for s in seed]
    return torch.stack(clips).to(device)


def fresh_noise(like: Tensor, generator: Generators = None, *, by_frame: bool = False) -> Tensor:
    """Standard normal noise (B, C, F, h, w) float32 with the shape and device of `like`.

    Args:
        generator: draws on its own device, so a CPU generator gives the same noise everywhere. One for each clip makes
            a batch equal its clips run alone.
        by_frame: draw in the order (B*F, C, h, w), as diffusers does for a scheduler that is given frames as a batch.
    """
    if isinstance(generator, Sequence):
        clips = [fresh_noise(like[i : i + 1], one, by_frame=by_frame) for i, one in enumerate(generator)]
        return torch.cat(clips)
    b, c, f, h, w = like.shape
    device = like.device if generator is None else generator.device
    noise = torch.randn((b, f, c, h, w) if by_frame else (b, c, f, h, w), generator=generator, device=device)
    return (noise.transpose(1, 2) if by_frame else noise).to(like.device, non_blocking=True)


def noised(clip: Tensor, plan: Plan, *, noise: Tensor | None = None, generator: Generators = None) -> Tensor:
    """A clip at the noise level that `plan` begins with: sqrt(abar) x0 + sqrt(1 - abar) eps (arXiv:2006.11239 Eq. 4).

    The same whatever the networks predict; at abar 0, where flows begin, it is the noise alone. For a part of the
    clip's own strength, cut the plan first: `noised(clip, plan.starting_at(step))`.

    Args:
        clip: clean latents (B, C, F, h, w), scaled as the networks see them.
        plan: any plan that can begin at a clip; `plan.first_alpha` is the level.
        noise: standard normal eps of the same shape. None: drawn from `generator` as in `fresh_noise`.

    Returns:
        Latents of the same shape, float32: what `sample` takes for this plan.

    Raises:
        IncompatibleInputs: clip and noise differ in shape, are not 5-dimensional, or hold no floating-point numbers,
            such as pixels of 0..255.
        InvalidSetting: the plan can only begin with noise.
    """
    clip_tensor("clip", clip)
    if noise is not None and clip_tensor("noise", noise).shape != clip.shape:
        shapes = f"clip {tuple(clip.shape)} and noise {tuple(noise.shape)}"
        raise IncompatibleInputs(f"{shapes} must both be (batch, channels, frames, height, width), and equal")
    alpha, clean = plan.first_alpha, clip.float()
    eps = fresh_noise(clean, generator) if noise is None else noise.to(clean)
    return alpha**0.5 * clean + (1 - alpha) ** 0.5 * eps
