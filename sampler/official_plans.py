"""The authors' released code as plans, quirks included (github xie-lab-ml/IV-mixed-Sampler, commit 54a7d5e).

A table says how the three families differ; the moves are written once. Timesteps are integers that scheduler steps
move by T // steps and that are clamped at 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sampler.errors import InvalidSetting
from sampler.moves import AnyMove, ModelName, Move, SolverMove
from sampler.noise_levels import Range, finite, scales
from sampler.noise_schedule import NoiseSchedule
from sampler.plan import Plan


@dataclass(frozen=True)
class _Family:
    """How one family's file departs from the others."""

    guidance: float
    zz: int | None  # None: the file has no such parameter
    zz_guidance: ModelName  # whose guidance the video model gets where it stands in for the image model
    swaps_timesteps: bool  # each of the two denoising moves runs at the timestep of the other
    outer: Literal["ddim", "sde-dpmsolver++"]
    has_dynamic_guidance: bool  # else the settings are stored and never used: always 4
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
    image_guidance: Range = (4, 4),
    video_guidance: Range = (4, 4),
    rho: float = 7.0,
    zz: int | None = None,
    guidance: float | None = None,
) -> Plan:
    """The released sampling loop of "animatediff", "modelscope" or "videocrafter"; for comparison with the paper.

    Args:
        schedule: of both models (the released code gives them the same).
        interval: step indices with a zig-zag, both ends inclusive; end before begin means none.
        image_guidance, video_guidance, rho: AnimateDiff only. The other two files store these and go on with 4.
        zz: every zz-th step replaces the image model by the video model; ModelScope has no such parameter.
        guidance: of the ordinary steps.

    None is the released default: interval (0, 49), VideoCrafter (0, 60); zz 1000, VideoCrafter 3; guidance 7.5,
    VideoCrafter 9.0. VideoCrafter's ordinary steps are SDE-DPM-Solver++ 2M: they draw noise from the generator that
    `sample` is given. ModelScope's image model sees 64x64 latents: `ImageDenoiser(..., resize=(64, 64))`.

    Raises InvalidSetting naming the parameter, its value and what is allowed, also for a setting that the released code
    of this family would ignore.
    """
    if family not in FAMILIES:
        raise InvalidSetting(f"family={family!r} is not supported; use one of {', '.join(map(repr, FAMILIES))}")
    form = FAMILIES[family]
    begin, end = form.interval if interval is None else interval
    period = _zz(family, form, zz, steps)
    w = finite("guidance", form.guidance if guidance is None else guidance)
    if not form.has_dynamic_guidance and (image_guidance, video_guidance) != ((4, 4), (4, 4)):
        raise InvalidSetting(
            f"image_guidance={image_guidance}, video_guidance={video_guidance}: the released {family} code ignores "
            "them and uses 4; leave them out, or use mixed_plan"
        )
    ramps: dict[ModelName, list[float]] = {
        "image": scales("image_guidance", image_guidance, rho, steps),
        "video": scales("video_guidance", video_guidance, rho, steps),
    }
    abar, count = schedule.alphas_cumprod, len(schedule)
    timesteps = schedule.timesteps(steps, "linspace") if form.outer == "ddim" else _solver_timesteps(steps, count)
    gap = count // steps
    # VideoCrafter's inner scheduler is always Stable Diffusion's, with set_alpha_to_one=False.
    final_alpha = schedule.final_alpha if form.outer == "ddim" else abar[0]

    def below(t: int) -> float:
        """The level that DDIMScheduler.step(t) ends at and DDIMInverseScheduler.step(t) starts from."""
        return abar[t - gap] if t >= gap else final_alpha

    def zigzag(i: int, t: int) -> Iterator[AnyMove]:
        p, q = max(0, t - gap), max(0, t - 2 * count // steps)
        stands_in = i % period == period - 1
        first: ModelName = "video" if stands_in else "image"
        g_first, g_video = ramps[form.zz_guidance if stands_in else "image"][i], ramps["video"][i]
        t_first, t_second = (p, t) if form.swaps_timesteps else (t, p)
        yield Move(first, t_first, abar[t_first], below(t_first), g_first)
        yield Move("video", t_second, abar[t_second], below(t_second), g_video)
        yield Move(first, q, below(p), abar[p], -g_first)
        yield Move("video", p, below(t), abar[t], -g_video)

    def ordinary(i: int, t: int) -> AnyMove:
        if form.outer == "ddim":
            return Move("video", t, abar[t], below(t), w)
        is_last = i == steps - 1  # it goes to the clean end, by the first order
        before = None if i == 0 or is_last else abar[timesteps[i - 1]]
        return SolverMove("video", t, abar[t], 1.0 if is_last else abar[timesteps[i + 1]], w, before)

    return Plan(tuple((*(zigzag(i, t) if begin <= i <= end else ()), ordinary(i, t)) for i, t in enumerate(timesteps)))


def _zz(family: str, form: _Family, zz: int | None, steps: int) -> int:
    """The period after which the video model stands in; beyond `steps` where it never does."""
    if zz is None:
        return form.zz or steps + 1
    if zz < 1:
        raise InvalidSetting(f"zz={zz} must be at least 1 (1 never runs the image model)")
    if form.zz is None and zz <= steps:
        raise InvalidSetting(
            f"zz={zz}: the released {family} code has no such parameter; leave it out, or use mixed_plan"
        )
    return zz


def _solver_timesteps(steps: int, count: int) -> tuple[int, ...]:
    """Those of diffusers' DPMSolverMultistepScheduler with linspace spacing: one more than asked, the last left out."""
    if not 1 <= steps < count:
        raise InvalidSetting(f"steps={steps} is outside 1..{count - 1}, where the solver's timesteps are distinct")
    return tuple(round(i * (count - 1) / steps) for i in range(steps, 0, -1))
