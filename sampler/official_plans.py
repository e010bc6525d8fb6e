"""The authors' released code as plans, quirks included (github xie-lab-ml/IV-mixed-Sampler, commit 54a7d5e).

A table lists how the three families differ; the moves are written once. Scheduler steps move integer timesteps by
T // steps and clamp them at 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sampler.errors import InvalidSetting
from sampler.moves import AnyMove, ModelName, Move, SolverMove
from sampler.noise_schedule import NoiseSchedule, check_schedule
from sampler.plan import Plan
from sampler.validation import (
    Guidance,
    finite_number,
    guidance_ramp,
    guidance_range,
    one_of,
    pair_of_numbers,
    whole_number,
)


@dataclass(frozen=True)
class _Family:
    """How the released file of one family differs from the others."""

    guidance: float
    zz: int | None  # None: the file has no such parameter
    zz_guidance: ModelName  # the guidance of the video model where it replaces the image model
    swaps_timesteps: bool  # each of the two denoising moves runs at the timestep of the other
    outer: Literal["ddim", "sde-dpmsolver++"]  # the ordinary steps
    has_dynamic_guidance: bool  # False: the settings are stored but never used; the scale is always 4
    interval: tuple[int, int]


FAMILIES = {
    "animatediff": _Family(7.5, 1000, "video", True, "ddim", True, (0, 49)),
    "modelscope": _Family(7.5, None, "video", False, "ddim", False, (0, 49)),
    "videocrafter": _Family(9.0, 3, "image", False, "sde-dpmsolver++", False, (0, 60)),
}


def official_plan(
    family: str,
    schedule: NoiseSchedule,
    steps: int = 50,
    *,
    interval: tuple[int, int] | None = None,
    image_guidance: Guidance = (4, 4),
    video_guidance: Guidance = (4, 4),
    rho: float = 7.0,
    zz: int | None = None,
    guidance: float | None = None,
) -> Plan:
    """The released sampling loop of one family, quirks included; for comparison with the paper's results.

    Args:
        family: "animatediff", "modelscope" or "videocrafter".
        schedule: noise schedule of both models (the released code gives them the same).
        steps: from 1 to the number of timesteps in `schedule`; VideoCrafter one less.
        interval: indices of the first and the last step with a zig-zag, both inclusive; last before first means none.
            None: (0, 49), VideoCrafter (0, 60).
        image_guidance, video_guidance, rho: as in `mixed_plan`; AnimateDiff only. The other two released files store
            these and always use 4.
        zz: in every zz-th step the video model replaces the image model; ModelScope has no such parameter. None: 1000,
            VideoCrafter 3.
        guidance: guidance scale of the ordinary steps. None: 7.5, VideoCrafter 9.0.

    Returns:
        The plan. VideoCrafter's ordinary steps are SDE-DPM-Solver++ 2M, which draws noise from the generator given to
        `sample`. ModelScope's image model sees 64x64 latents: use `ImageDenoiser(..., resize=(64, 64))`.

    Raises:
        InvalidSetting: names the parameter, its value and what is allowed; also for a setting that the released code
            of this family ignores.
    """
    one_of("family", family, tuple(FAMILIES))
    check_schedule("schedule", schedule)
    form = FAMILIES[family]
    meaning = "two step indices, the first and the last with a zig-zag"
    begin, end = form.interval if interval is None else pair_of_numbers("interval", interval, meaning)
    w = finite_number("guidance", form.guidance if guidance is None else guidance)
    scales = guidance_range("image_guidance", image_guidance), guidance_range("video_guidance", video_guidance)
    if not form.has_dynamic_guidance and scales != ((4, 4), (4, 4)):
        raise InvalidSetting(
            f"image_guidance={image_guidance}, video_guidance={video_guidance}: the released {family} code ignores "
            "them and uses 4; leave them out, or use mixed_plan"
        )
    count = len(schedule)
    timesteps = schedule.timesteps(steps, "linspace") if form.outer == "ddim" else _solver_timesteps(steps, count)
    loop, period = _ReleasedLoop(form, schedule, timesteps), _zz(family, form, zz, len(timesteps))
    image = guidance_ramp("image_guidance", image_guidance, rho, len(timesteps))
    video = guidance_ramp("video_guidance", video_guidance, rho, len(timesteps))

    def moves(i: int) -> Iterator[AnyMove]:
        if begin <= i <= end:
            yield from loop.zigzag(i, image[i], video[i], video_only=i % period == period - 1)
        yield loop.ordinary_step(i, w)

    return Plan(tuple(tuple(moves(i)) for i in range(len(timesteps))))


@dataclass(frozen=True)
class _ReleasedLoop:
    """The moves of one outer step, as the released file of a family makes them."""

    form: _Family
    schedule: NoiseSchedule
    timesteps: tuple[int, ...]

    @property
    def gap(self) -> int:
        return len(self.schedule) // len(self.timesteps)

    def alpha(self, t: int) -> float:
        return self.schedule.alphas_cumprod[t]

    def alpha_after(self, t: int) -> float:
        """abar where DDIMScheduler.step(t) ends and DDIMInverseScheduler.step(t) starts."""
        if t >= self.gap:
            return self.alpha(t - self.gap)
        # VideoCrafter's inner scheduler is always Stable Diffusion's, with set_alpha_to_one=False.
        return self.schedule.final_alpha if self.form.outer == "ddim" else self.alpha(0)

    def zigzag(self, i: int, image: float, video: float, *, video_only: bool) -> Iterator[AnyMove]:
        t = self.timesteps[i]
        p, q = max(0, t - self.gap), max(0, t - 2 * len(self.schedule) // len(self.timesteps))
        first: ModelName = "video" if video_only else "image"
        g_first = video if video_only and self.form.zz_guidance == "video" else image
        t_first, t_second = (p, t) if self.form.swaps_timesteps else (t, p)
        yield Move(first, t_first, self.alpha(t_first), self.alpha_after(t_first), g_first)
        yield Move("video", t_second, self.alpha(t_second), self.alpha_after(t_second), video)
        yield Move(first, q, self.alpha_after(p), self.alpha(p), -g_first)
        yield Move("video", p, self.alpha_after(t), self.alpha(t), -video)

    def ordinary_step(self, i: int, guidance: float) -> AnyMove:
        t, is_last = self.timesteps[i], i == len(self.timesteps) - 1
        if self.form.outer == "ddim":
            return Move("video", t, self.alpha(t), self.alpha_after(t), guidance)
        if is_last:  # a first-order step to the clean end
            return SolverMove("video", t, self.alpha(t), 1.0, guidance)
        before = None if i == 0 else self.alpha(self.timesteps[i - 1])
        return SolverMove("video", t, self.alpha(t), self.alpha(self.timesteps[i + 1]), guidance, before)


def _zz(family: str, form: _Family, zz: int | None, steps: int) -> int:
    """The period of the steps without image model; larger than `steps` if there are none."""
    if zz is None:
        return form.zz or steps + 1
    zz = whole_number("zz", zz, " (1: the image model never runs)")
    if form.zz is None and zz <= steps:
        raise InvalidSetting(
            f"zz={zz}: the released {family} code has no such parameter; leave it out, or use mixed_plan"
        )
    return zz


def _solver_timesteps(steps: int, count: int) -> tuple[int, ...]:
    """As diffusers' DPMSolverMultistepScheduler with linspace spacing: one more than `steps`, without the last."""
    steps = whole_number("steps", steps, ", where the solver's timesteps are distinct", most=count - 1)
    return tuple(round(i * (count - 1) / steps) for i in range(steps, 0, -1))
