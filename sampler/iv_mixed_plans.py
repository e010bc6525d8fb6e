"""The IV-Mixed Sampler (arXiv:2410.04171): turns a combination such as IV-IV into the moves of a plan.

Each denoising move of a zig-zag uses eps_u + g (eps_c - eps_u), each go-back move eps_u - g (eps_c - eps_u), where g is
the guidance of its model; every move is one of DDIM between adjacent noise levels (see `Move`). IV-IV makes 5 network
calls a step, 3 V and 2 I. Steps without room for a zig-zag have only the ordinary step: the last one (denoise_first) or
the first ones (goback_first). A plan with R draws noise from the generator given to `sample`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from sampler.denoise_and_goback_moves import AnyMove, ModelName, Renoise
from sampler.errors import InvalidSetting
from sampler.guidance_rules import GuidanceRule
from sampler.level_grid import LevelGrid, Solver
from sampler.plan import Plan
from sampler.schedule import Schedule
from sampler.validation import Guidance, Range, active_steps, finite_number, guidance_ramps, one_of, whole_number

Order = Literal["denoise_first", "goback_first"]

MODELS: dict[str, ModelName] = {"I": "image", "V": "video"}
NOISE = "R"


def mixed_plan(
    schedule: Schedule,
    steps: int = 50,
    *,
    combination: str = "IV-IV",
    order: Order = "denoise_first",
    interval: Range = (0.0, 1.0),
    image_guidance: Guidance = (4, 4),
    video_guidance: Guidance = (4, 4),
    rho: float = 7.0,
    guidance: float = 7.5,
    interval_guidance: float | None = None,
    image_schedule: Schedule | None = None,
    image_every: int = 1,
    off_distribution: bool = False,
    solver: Solver = "ddim",
    rule: GuidanceRule | None = None,
) -> Plan:
    """The IV-Mixed Sampler: before every ordinary step, a zig-zag that ends at the noise level it began at.

    Args:
        schedule, steps, solver, rule: as in `ddim_plan`; zig-zags have moves like `Move`, and classifier-free guidance.
        combination: one or two go-back moves, a dash, as many denoising ones: I(mage), V(ideo); back also R, `Renoise`.
        order: "denoise_first" (the released code) or "goback_first" (the paper's figure; R needs it).
        interval: the part of the run with zig-zags, as two fractions of the steps.
        image_guidance, video_guidance: scale in the zig-zags, at least 0: one, or two for the first and the last step.
        rho: exponent of the way between those two, above 0; 1: straight (arXiv:2206.00364 Eq. 5).
        guidance, interval_guidance: scale of the ordinary steps, and of those in `interval` (None: the same); finite.
        image_schedule: of the image model, called at the timestep of equal signal-to-noise. None: `schedule`.
        image_every: n from 1: only the first, (n+1)th .. zig-zag is as given; in the others V replaces I.
        off_distribution: the image model was not trained on such latents: refuse what would leak, see `check_leak`.

    Raises InvalidSetting, which names the parameter, its value and what is allowed.
    """
    grid = LevelGrid(schedule, steps, image_schedule, solver, rule)
    ordinary = _ordinary_guidance(guidance, interval_guidance, interval, grid.steps)
    letters = _letters_of_steps(combination, order, off_distribution, interval, image_every, grid.steps)
    image, video = guidance_ramps(image_guidance, video_guidance, rho, grid.steps)
    zigzags = {i: tuple(_zigzag(grid, i, *x, order, {"I": image[i], "V": video[i]})) for i, x in letters.items()}
    return Plan(tuple((*zigzags.get(i, ()), grid.ordinary_step(i, scale)) for i, scale in enumerate(ordinary)))


def _ordinary_guidance(guidance: float, interval_guidance: float | None, interval: Range, steps: int) -> list[float]:
    """Guidance of the ordinary step of every step: another one in a part of the run is that of arXiv:2404.07724."""
    outside = finite_number("guidance", guidance)
    inside = outside if interval_guidance is None else finite_number("interval_guidance", interval_guidance)
    active = active_steps(interval, steps)
    return [inside if i in active else outside for i in range(steps)]


def _letters_of_steps(
    combination: str, order: Order, off_distribution: bool, interval: Range, image_every: int, steps: int
) -> dict[int, tuple[str, str]]:
    """(go-back letters, denoising letters) of each step with a zig-zag."""
    goback, denoise = _letters(combination, order, off_distribution)
    period = whole_number("image_every", image_every, " (1: the image model in every zig-zag)")
    room = _steps_with_room(order, len(goback), steps)
    without_image = goback.replace("I", "V"), denoise.replace("I", "V")
    places = enumerate(i for i in active_steps(interval, steps) if i in room)
    return {i: without_image if k % period else (goback, denoise) for k, i in places}


def _zigzag(
    grid: LevelGrid, i: int, goback: str, denoise: str, order: Order, scales: Mapping[str, float]
) -> Iterator[AnyMove]:
    """The moves of the zig-zag before the ordinary step `i`; `scales` has the guidance of each letter."""
    direction = 1 if order == "denoise_first" else -1
    levels = [i + direction * k for k in range(len(goback) + 1)]
    denoising, going_back = (denoise, 1), (goback, -1)
    legs = (denoising, going_back) if order == "denoise_first" else (going_back, denoising)
    for (letters, sign), path in zip(legs, (levels, levels[::-1]), strict=True):
        for letter, src, dst in zip(letters, path, path[1:], strict=False):
            if letter == NOISE:
                yield Renoise(grid.alphas[src], grid.alphas[dst])
            else:
                yield grid.move(MODELS[letter], src, dst, sign * scales[letter])


def _steps_with_room(order: Order, width: int, steps: int) -> range:
    """The steps with `width` levels below them (denoise_first) or above them (goback_first)."""
    if order == "goback_first":
        return range(width, steps)
    return range(min(steps - 1, steps - width + 1))  # the last step has none: below it is only the clean end


def _letters(combination: Any, order: Any, off_distribution: Any) -> tuple[str, str]:  # Any: as a caller passed them
    """(go-back letters, denoising letters)."""
    one_of("order", order, get_args(Order))
    goback, dash, denoise = str(combination).partition("-")
    is_valid = dash and len(goback) == len(denoise) and len(goback) in (1, 2)
    if not is_valid or set(goback) - {*MODELS, NOISE} or set(denoise) - set(MODELS):
        raise InvalidSetting(
            f"combination={combination!r} is not supported; write one or two letters of I (image) and V (video) "
            "on each side of a dash: go-back models - denoising models, for example 'IV-IV'; before the dash also R, "
            "Gaussian noise, for example 'R-I'"
        )
    if NOISE in goback and order == "denoise_first":
        raise InvalidSetting(
            f"combination={combination!r} goes back by Gaussian noise, which undoes the denoising before it; "
            "use order='goback_first' with it"
        )
    if off_distribution:
        check_leak(combination, goback, denoise)
    return goback, denoise


def check_leak(combination: str, goback: str, denoise: str) -> None:
    """Refuses combinations that carry a clip along what the image model predicts without guidance.

    That is sound only if the image model was trained on such latents. It was not where the autoencoder compresses time
    causally (Wan's): every latent frame but the first is of several frames. In IV-IV and its like each image move is
    undone a level away, so that to first order only guidance stays. Where the image model moves twice in a row, or more
    often one way than the other, its own prediction stays: with means off by 1.5 deviations clips moved by 2.8 to 3.1
    in II-VV, by 0.15 to 0.33 in IV-IV and IV-VI.
    """
    if goback.count("I") != denoise.count("I") or "II" in (goback, denoise):
        raise InvalidSetting(
            f"combination={combination!r} does not work with off_distribution=True: the image model moves twice in a "
            "row, or more often one way than the other, which leaks its own picture of latents that it was not trained "
            "on; use IV-IV, IV-VI, VI-IV or VI-VI, or fused_plan"
        )
