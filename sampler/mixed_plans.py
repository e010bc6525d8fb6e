"""Plans on a grid of adjacent noise levels: plain DDIM, the IV-Mixed Sampler, and two samplers it is compared with.

Pure functions from settings to a plan; each raises InvalidSetting, which names setting, value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from sampler.errors import InvalidSetting
from sampler.moves import AnyMove, FusedMove, ModelName, Renoise
from sampler.noise_levels import Grid, Range, active_steps, finite, scales
from sampler.noise_schedule import NoiseSchedule
from sampler.plan import Plan

Order = Literal["denoise_first", "goback_first"]

LETTERS: dict[str, ModelName] = {"I": "image", "V": "video"}
NOISE = "R"


def ddim_plan(schedule: NoiseSchedule, steps: int = 50, *, guidance: float = 7.5) -> Plan:
    """The video model alone, one DDIM step after another: the baseline of every comparison."""
    grid = Grid(schedule, steps)
    finite("guidance", guidance)
    return Plan(tuple((grid.ordinary(i, guidance),) for i in range(steps)))


def mixed_plan(
    schedule: NoiseSchedule,
    steps: int = 50,
    *,
    combination: str = "IV-IV",
    order: Order = "denoise_first",
    interval: Range = (0.0, 1.0),
    image_guidance: Range = (4, 4),
    video_guidance: Range = (4, 4),
    rho: float = 7.0,
    guidance: float = 7.5,
    image_schedule: NoiseSchedule | None = None,
    image_every: int = 1,
) -> Plan:
    """The IV-Mixed Sampler (arXiv:2410.04171): before every ordinary step a zig-zag that ends at the level it began.

    Args:
        schedule: of the video model; its levels are the grid, every move goes between adjacent ones.
        combination: letters of the go-back moves, a dash, letters of the denoising moves, in the order they run. I and
            V are the two models. R, before the dash and with `order="goback_first"` only, is Gaussian noise in place
            of DDIM inversion; a run of such a plan draws from the generator that `sample` is given.
        order: `denoise_first` (the released code) or `goback_first` (the paper's figure).
        interval: the part of the run in which the zig-zag is active, as fractions of the steps.
        image_guidance, video_guidance: guidance of the zig-zag at the first and last step of the run.
        rho: shape of the way between the two; 1 is a straight line.
        guidance: of the ordinary steps.
        image_schedule: of the image model where it differs; it is then evaluated at the timestep of equal
            noise-to-signal. None: the same schedule.
        image_every: period, counted in zig-zags. With n, the first, (n+1)th, (2n+1)th .. zig-zag of the run is as
            `combination` says; in the others the video model, with its own guidance, takes the image model's place,
            so that IV-IV becomes VV-VV. 1 uses the image model always.
    """
    goback, denoise = _letters(combination, order)
    active = active_steps(interval, steps)
    if image_every < 1 or image_every != int(image_every):
        raise InvalidSetting(
            f"image_every={image_every} must be a whole number from 1 (1: the image model in every zig-zag)"
        )
    grid = Grid(schedule, steps, image_schedule)
    finite("guidance", guidance)
    ramps: dict[ModelName, list[float]] = {
        "image": scales("image_guidance", image_guidance, rho, steps),
        "video": scales("video_guidance", video_guidance, rho, steps),
    }
    width = len(goback)
    # Levels i .. i+width below (denoise_first) or i .. i-width above (goback_first) must be there. The last ordinary
    # step has no zig-zag: below it is only the clean end.
    room = range(min(steps - 1, steps - width + 1)) if order == "denoise_first" else range(width, steps)
    zigzags = [i for i in active if i in room]
    without_image = {i for k, i in enumerate(zigzags) if k % image_every}

    def zigzag(i: int) -> Iterator[AnyMove]:
        away = [i + (k if order == "denoise_first" else -k) for k in range(width + 1)]
        legs = ((denoise, 1), (goback, -1)) if order == "denoise_first" else ((goback, -1), (denoise, 1))
        for (letters, sign), path in zip(legs, (away, away[::-1]), strict=True):
            for letter, src, dst in zip(letters, path, path[1:], strict=False):
                if letter == NOISE:
                    yield Renoise(grid.alphas[src], grid.alphas[dst])
                else:
                    model: ModelName = "video" if i in without_image else LETTERS[letter]
                    yield grid.move(model, src, dst, sign * ramps[model][i])

    return Plan(tuple((*(zigzag(i) if i in zigzags else ()), grid.ordinary(i, guidance)) for i in range(steps)))


def zigzag_plan(
    schedule: NoiseSchedule,
    steps: int = 50,
    *,
    guidance: float = 5.5,
    goback_guidance: float = 0.0,
    interval: Range = (0.0, 1.0),
) -> Plan:
    """Z-Sampling (arXiv:2412.10891) with the video model: denoise, go back, denoise again; 3 calls a step.

    The defaults are the paper's: 5.5 forth and 0 back. Unlike `mixed_plan`, `goback_guidance` is what the go-back move
    uses as it stands: what is gained is the gap between the two. The last step has no zig-zag: below it is only the
    clean end.
    """
    grid = Grid(schedule, steps)
    finite("guidance", guidance)
    finite("goback_guidance", goback_guidance)
    zigzags = [i for i in active_steps(interval, steps) if i < steps - 1]

    def zigzag(i: int) -> Iterator[AnyMove]:
        yield grid.move("video", i, i + 1, guidance)
        yield grid.move("video", i + 1, i, goback_guidance)

    return Plan(tuple((*(zigzag(i) if i in zigzags else ()), grid.ordinary(i, guidance)) for i in range(steps)))


def fused_plan(
    schedule: NoiseSchedule,
    steps: int = 50,
    *,
    interval: Range = (0.0, 1.0),
    image_guidance: Range = (4, 4),
    video_guidance: Range = (4, 4),
    rho: float = 7.0,
    guidance: float = 7.5,
    image_schedule: NoiseSchedule | None = None,
) -> Plan:
    """Experimental, not in the paper: what an IV-IV zig-zag adds to first order, in two calls a step rather than five.

    eps = eps_u^V + (guidance + 2 video_guidance) d^V + 2 image_guidance d^I, with d = eps_c - eps_u of each model: a
    zig-zag uses each guidance twice, forth and back. Settings as in `mixed_plan`; it overshoots more than the zig-zag.
    """
    active = active_steps(interval, steps)
    grid = Grid(schedule, steps, image_schedule)
    finite("guidance", guidance)
    image = scales("image_guidance", image_guidance, rho, steps)
    video = scales("video_guidance", video_guidance, rho, steps)

    def fused(i: int) -> FusedMove:
        parts = (
            grid.call("video", i, guidance + 2 * video[i]),
            grid.call("image", i, 2 * image[i], uncond=0.0),
        )
        return FusedMove(parts, grid.alphas[i], grid.below(i))

    return Plan(tuple((fused(i) if i in active else grid.ordinary(i, guidance),) for i in range(steps)))


def _letters(combination: str, order: Order) -> tuple[str, str]:
    """(go-back letters, denoising letters)."""
    if order not in ("denoise_first", "goback_first"):
        raise InvalidSetting(f"order={order!r} is not supported; use 'denoise_first' or 'goback_first'")
    goback, dash, denoise = combination.partition("-")
    fits = dash and len(goback) == len(denoise) and len(goback) in (1, 2)
    if not fits or set(goback) - {*LETTERS, NOISE} or set(denoise) - set(LETTERS):
        raise InvalidSetting(
            f"combination={combination!r} is not supported; write one or two letters of I (image) and V (video) "
            "on each side of a dash: go-back models - denoising models, for example 'IV-IV'; before the dash also R, "
            "Gaussian noise, for example 'R-I'"
        )
    if NOISE in goback and order == "denoise_first":
        raise InvalidSetting(
            f"combination={combination!r} goes back by Gaussian noise, which undoes what was denoised before it; "
            "use order='goback_first' with it"
        )
    return goback, denoise
