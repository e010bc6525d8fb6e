"""The authors' released code as plans, quirks included (github xie-lab-ml/IV-mixed-Sampler, commit 54a7d5e).

A table lists how the three families differ; the moves are written once. Scheduler steps move integer timesteps by
T // steps and clamp them at 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from sampler.denoise_and_goback_moves import AnyMove, ModelName, Move, SolverMove
from sampler.errors import InvalidSetting
from sampler.noise_schedule import NoiseSchedule, noise_schedule
from sampler.plan import Plan
from sampler.validation import (
    Guidance,
    finite_number,
    guidance_ramps,
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
        image_guidance, video_guidance, rho: as in `mixed_plan`; AnimateDiff only, the others always use 4.
        zz: in every zz-th step the video model replaces the image model; not ModelScope. None: 1000, VideoCrafter 3.
        guidance: guidance scale of the ordinary steps, any finite number. None: 7.5, VideoCrafter 9.0.

    Returns:
        The plan. VideoCrafter's ordinary steps are SDE-DPM-Solver++ 2M, which draws noise from the generator given to
        `sample`. ModelScope's image model sees 64x64 latents: use `ImageDenoiser(..., resize=(64, 64))`.

    Raises:
        InvalidSetting: names parameter, value and what is allowed; also if the family's released code ignores it.
    """
    loop = _released_loop(family, schedule, steps)
    with_zigzag, period = loop.steps_with_zigzag(interval), loop.steps_to_video_only(zz)
    image, video = loop.zigzag_guidance(image_guidance, video_guidance, rho)
    w = finite_number("guidance", loop.form.guidance if guidance is None else guidance)
    plan: list[list[AnyMove]] = [[loop.ordinary_step(i, w)] for i in range(len(loop.timesteps))]
    for i in with_zigzag:
        plan[i][:0] = loop.zigzag(i, image[i], video[i], video_only=i % period == period - 1)
    reason = "the released code begins with noise, and its moves drift from the steps' noise levels; use mixed_plan"
    return Plan(tuple(map(tuple, plan)), only_from_noise=reason)


def _released_loop(family: str, schedule: NoiseSchedule, steps: int) -> _ReleasedLoop:
    one_of("family", family, tuple(FAMILIES))
    noise_schedule("schedule", schedule, "the released code steps by timesteps; use mixed_plan")
    form = FAMILIES[family]
    is_ddim = form.outer == "ddim"
    timesteps = schedule.timesteps(steps, "linspace") if is_ddim else _solver_timesteps(steps, len(schedule))
    return _ReleasedLoop(family, form, schedule, timesteps)


@dataclass(frozen=True)
class _ReleasedLoop:
    """The moves of one outer step, as the released file of a family makes them."""

    family: str
    form: _Family
    schedule: NoiseSchedule
    timesteps: tuple[int, ...]

    def steps_with_zigzag(self, interval: Any) -> list[int]:  # Any, here and below: as in sampler/validation.py
        meaning = "two step indices, the first and the last with a zig-zag"
        begin, end = self.form.interval if interval is None else pair_of_numbers("interval", interval, meaning)
        return [i for i in range(len(self.timesteps)) if begin <= i <= end]

    def steps_to_video_only(self, zz: Any) -> int:
        """The period of the zig-zags without image model; larger than the number of steps if there are none."""
        steps = len(self.timesteps)
        if zz is None:
            return self.form.zz or steps + 1
        period = whole_number("zz", zz, " (1: the image model never runs)")
        if self.form.zz is None and period <= steps:
            raise InvalidSetting(
                f"zz={zz}: the released {self.family} code has no such parameter; leave it out, or use mixed_plan"
            )
        return period

    def zigzag_guidance(self, image: Any, video: Any, rho: Any) -> tuple[list[float], list[float]]:
        """The scales of the image model and of the video model, step by step."""
        scales = guidance_range("image_guidance", image), guidance_range("video_guidance", video)
        if not self.form.has_dynamic_guidance and scales != ((4, 4), (4, 4)):
            raise InvalidSetting(
                f"image_guidance={image}, video_guidance={video}: the released {self.family} code ignores them and "
                "uses 4; leave them out, or use mixed_plan"
            )
        return guidance_ramps(image, video, rho, len(self.timesteps))

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


def _solver_timesteps(steps: int, count: int) -> tuple[int, ...]:
    """As diffusers' DPMSolverMultistepScheduler with linspace spacing: one more than `steps`, without the last."""
    steps = whole_number("steps", steps, ", where the solver's timesteps are distinct", most=count - 1)
    return tuple(round(i * (count - 1) / steps) for i in range(steps, 0, -1))
