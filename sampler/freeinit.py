"""FreeInit (arXiv:2312.07537) around any plan: run it, refine the start noise with a low-pass filter, run it again."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args

import torch
from torch import Tensor

from sampler.denoise_and_goback_moves import LowPass, Restart
from sampler.errors import InvalidSetting
from sampler.noise_schedule import noise_schedule
from sampler.plan import Plan
from sampler.schedule import Schedule
from sampler.validation import finite_number, one_of, whole_number

ONLY_FROM_NOISE = "FreeInit makes new start noise for every run; leave FreeInit out"
NO_SIGNAL = (
    "FreeInit keeps what the noisiest level still shows of a clip, and this run starts from pure noise (s = 1), which "
    "shows nothing; leave FreeInit out"
)
_DIMS = (-3, -2, -1)  # frames, height, width


def free_init_plan(
    plan: Plan,
    schedule: Schedule,
    iterations: int = 3,
    *,
    method: LowPass = "butterworth",
    order: int = 4,
    spatial_cutoff: float = 0.25,
    temporal_cutoff: float = 0.25,
) -> Plan:
    """`plan`, `iterations` times over; between two runs new start noise is made from the clip. Defaults are diffusers'.

    Args:
        plan: any plan that starts from noise.
        schedule: noise schedule of the video model, whose last timestep the clip is noised to. One that ends at pure
            noise, a `FlowSchedule` or zero terminal SNR, is refused.
        iterations: number of runs, from 1; 1 is the plan itself.
        method: shape of the low-pass filter that keeps a part of the clip: "butterworth", "gaussian" or "ideal".
        order: order of the Butterworth filter, from 1.
        spatial_cutoff, temporal_cutoff: cutoff frequencies in (0, 1], 1 is the Nyquist frequency.

    Returns:
        A plan that draws from the generator given to `sample`.

    Raises:
        InvalidSetting: names the parameter, its value and what is allowed.
    """
    _check(iterations, method, order, {"spatial_cutoff": spatial_cutoff, "temporal_cutoff": temporal_cutoff})
    if plan.skipped:
        raise InvalidSetting(
            f"plan lacks its first {plan.skipped} steps; FreeInit makes start noise: give it the whole plan"
        )
    noisiest = _noisiest_level(schedule)
    restart = Restart(noisiest, method, order, spatial_cutoff, temporal_cutoff)
    again = ((restart, *plan.steps[0]), *plan.steps[1:])
    return Plan(plan.steps + again * (int(iterations) - 1), only_from_noise=ONLY_FROM_NOISE)


def _noisiest_level(schedule: Any) -> float:  # Any, here and below: what a caller passed is checked
    betas = noise_schedule("schedule", schedule, NO_SIGNAL)
    if not betas.alphas_cumprod[-1]:
        raise InvalidSetting(f"schedule={schedule!r} ends at zero terminal SNR: {NO_SIGNAL}")
    return betas.alphas_cumprod[-1]


def _check(iterations: Any, method: Any, order: Any, cutoffs: Mapping[str, Any]) -> None:
    whole_number("iterations", iterations, " (1: the plan itself)")
    one_of("method", method, get_args(LowPass))
    whole_number("order", order)
    for name, cutoff in cutoffs.items():
        if not 0 < finite_number(name, cutoff) <= 1:
            raise InvalidSetting(f"{name}={cutoff} must be in (0, 1]; 1 is the Nyquist frequency")


def restart_latents(clip: Tensor, initial: Tensor, fresh: Tensor, restart: Restart) -> Tensor:
    """New start noise: low frequencies of the noised clip, high frequencies of fresh noise (arXiv:2312.07537 Eq. 8).

    Args:
        clip, initial, fresh: finished latents, the noise their run began with, and new noise; (B, C, F, h, w) each.
    """
    noisy = restart.dst**0.5 * clip + (1 - restart.dst) ** 0.5 * initial
    keep = low_pass_filter(restart, *clip.shape[-3:]).to(clip.device, non_blocking=True)
    spectrum = keep * torch.fft.fftn(noisy, dim=_DIMS) + (1 - keep) * torch.fft.fftn(fresh, dim=_DIMS)
    return cast("Tensor", torch.fft.ifftn(spectrum, dim=_DIMS)).real


def low_pass_filter(restart: Restart, frames: int, height: int, width: int) -> Tensor:
    """Gain (F, h, w) float32 of each frequency, in the order of torch.fft; 1 keeps, 0 drops."""
    # Even steps from -1, the Nyquist frequency, as in the authors' code and diffusers. On an axis of odd length this is
    # half a step off the true frequencies; kept, because FreeInit serves as a comparison.
    t, y, x = (2 * torch.arange(n, dtype=torch.float64) / n - 1 for n in (frames, height, width))
    stretch = restart.spatial_cutoff / restart.temporal_cutoff  # one cutoff for all three axes
    radius2 = ((stretch * t) ** 2)[:, None, None] + (y**2)[:, None] + x**2  # (F, h, w)
    cutoff = restart.spatial_cutoff
    match restart.method:
        case "butterworth":
            gain = 1 / (1 + (radius2 / cutoff**2) ** restart.order)
        case "gaussian":
            gain = torch.exp(-radius2 / (2 * cutoff**2))
        case "ideal":  # as in the authors' code: the squared radius against twice the cutoff
            gain = (radius2 <= 2 * cutoff).double()
    return cast("Tensor", torch.fft.ifftshift(gain)).float()
