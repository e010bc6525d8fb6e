"""FreeInit (arXiv:2312.07537) around any plan: run, refine the noise the run began with, run again."""

from __future__ import annotations

from typing import cast, get_args

import torch
from torch import Tensor

from sampler.errors import InvalidSetting
from sampler.moves import LowPass, Restart
from sampler.noise_schedule import NoiseSchedule
from sampler.plan import Plan

_DIMS = (-3, -2, -1)  # frames, height, width


def free_init_plan(
    plan: Plan,
    schedule: NoiseSchedule,
    iterations: int = 3,
    *,
    method: LowPass = "butterworth",
    order: int = 4,
    spatial_cutoff: float = 0.25,
    temporal_cutoff: float = 0.25,
) -> Plan:
    """`plan`, `iterations` times over; between two of them the start noise is made anew from the clip so far.

    Args:
        schedule: of the video model; its noisiest level is where the clip is taken back to.
        method: which filter says what is kept of the clip; `order` is of the Butterworth filter.
        spatial_cutoff, temporal_cutoff: of the filter, in (0, 1], 1 being the Nyquist frequency.

    Defaults are diffusers'. A run draws from the generator that `sample` is given.
    Raises InvalidSetting naming the parameter, its value and what is allowed.
    """
    if iterations < 1:
        raise InvalidSetting(f"iterations={iterations} must be at least 1 (1 is the plan itself)")
    if method not in get_args(LowPass):
        raise InvalidSetting(f"method={method!r} is not supported; use one of {get_args(LowPass)}")
    if order < 1:
        raise InvalidSetting(f"order={order} must be at least 1")
    for name, cutoff in (("spatial_cutoff", spatial_cutoff), ("temporal_cutoff", temporal_cutoff)):
        if not 0 < cutoff <= 1:
            raise InvalidSetting(f"{name}={cutoff} must lie in (0, 1], 1 being the Nyquist frequency")
    restart = Restart(schedule.alphas_cumprod[-1], method, order, spatial_cutoff, temporal_cutoff)
    again = ((restart, *plan.steps[0]), *plan.steps[1:])
    return Plan(plan.steps + again * (iterations - 1))


def restart_latents(clip: Tensor, initial: Tensor, fresh: Tensor, restart: Restart) -> Tensor:
    """New start noise (B, C, F, h, w) from a finished clip, the noise its run began with, and fresh noise."""
    noisy = restart.dst**0.5 * clip + (1 - restart.dst) ** 0.5 * initial
    keep = low_pass_filter(restart, *clip.shape[-3:]).to(clip.device, non_blocking=True)
    return _inverse(keep * _spectrum(noisy) + (1 - keep) * _spectrum(fresh))


def low_pass_filter(restart: Restart, frames: int, height: int, width: int) -> Tensor:
    """Gain (F, h, w) float32 of every frequency, in the order of torch.fft; 1 keeps, 0 drops."""
    # From -1, the Nyquist frequency, in even steps, as the authors and diffusers count. On an axis of odd length this
    # is half a step off the true frequencies; kept, since FreeInit is here to be compared with.
    t, y, x = (2 * torch.arange(n, dtype=torch.float64) / n - 1 for n in (frames, height, width))
    stretch = restart.spatial_cutoff / restart.temporal_cutoff  # so that one cutoff serves the three axes
    radius2 = ((stretch * t) ** 2)[:, None, None] + (y**2)[:, None] + x**2  # (F, h, w)
    cutoff = restart.spatial_cutoff
    match restart.method:
        case "butterworth":
            gain = 1 / (1 + (radius2 / cutoff**2) ** restart.order)
        case "gaussian":
            gain = torch.exp(-radius2 / (2 * cutoff**2))
        case "ideal":  # the authors' edge: the squared radius against twice the cutoff
            gain = (radius2 <= 2 * cutoff).double()
    return cast("Tensor", torch.fft.ifftshift(gain)).float()  # pyright: ignore[reportUnknownMemberType]


def _spectrum(x: Tensor) -> Tensor:
    return cast("Tensor", torch.fft.fftn(x, dim=_DIMS))  # pyright: ignore[reportUnknownMemberType]


def _inverse(spectrum: Tensor) -> Tensor:
    return cast("Tensor", torch.fft.ifftn(spectrum, dim=_DIMS)).real  # pyright: ignore[reportUnknownMemberType]
