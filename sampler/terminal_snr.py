"""Schedules whose noisiest levels were changed after the betas were chosen: an SNR shift, and zero terminal SNR."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import torch
from torch import Tensor


def shifted_snr(alphas: Tensor, scale: float) -> Tensor:
    """abar with its signal-to-noise ratio divided by `scale`, as CogVideoX has it (arXiv:2408.06072).

    Args:
        alphas: abar of each timestep, (T,), in (0, 1].
        scale: above 0; 1 changes nothing.
    """
    return alphas / (scale + (1 - scale) * alphas)


def zero_terminal_snr(alphas: Tensor) -> Tensor:
    """sqrt(abar) shifted and stretched so that the last level holds no signal (arXiv:2305.08891 Alg. 1).

    Args:
        alphas: abar of each timestep, (T,), at least two different ones; timestep 0 keeps its own.
    """
    roots = alphas.sqrt()
    first, last = roots[0], roots[-1]
    return ((roots - last) * (first / (first - last))) ** 2


def through_betas(alphas: Tensor) -> Tensor:
    """The same levels as diffusers' schedulers of betas have them, which make betas of abar and multiply them again."""
    ratios = torch.cat([alphas[:1], alphas[1:] / alphas[:-1]])
    return torch.cumprod(1 - (1 - ratios), dim=0)
