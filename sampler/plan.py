"""Plans: what a run will do, as data. Pure functions from settings to a tuple of steps, each a tuple of moves.

A move evaluates one network and carries x from one noise level to another along its epsilon (arXiv:2010.02502 Eq. 12,
eta = 0; towards more noise the same formula is DDIM inversion). Knows no tensors and no networks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sampler.schedule import NoiseSchedule

ModelName = Literal["image", "video"]
Order = Literal["denoise_first", "goback_first"]
Range = tuple[float, float]

LETTERS: dict[str, ModelName] = {"I": "image", "V": "video"}


@dataclass(frozen=True)
class Move:
    """Evaluate `model` at `timestep` and carry x from noise level `src` to `dst` (cumulative alphas).

    eps = eps_uncond + guidance * (eps_cond - eps_uncond); a go-back move carries a negative guidance.
    """

    model: ModelName
    timestep: int
    src: float
    dst: float
    guidance: float

    @property
    def coefficients(self) -> tuple[float, float]:
        """(a, b) of x' = a x + b eps, in float64."""
        if self.src == self.dst:
            return 1.0, 0.0
        a = (self.dst / self.src) ** 0.5
        return a, (1 - self.dst) ** 0.5 - a * (1 - self.src) ** 0.5

    @property
    def is_free(self) -> bool:
        """Whether epsilon has no weight, so that the network need not be called."""
        return self.coefficients[1] == 0.0


@dataclass(frozen=True)
class Plan:
    """The steps of a run; `calls` is its cost in network calls (two guidance halves count as one)."""

    steps: tuple[tuple[Move, ...], ...]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[Move, ...]]:
        return iter(self.steps)

    @property
    def calls(self) -> dict[str, int]:
        count = Counter(move.model for step in self.steps for move in step if not move.is_free)
        return {name: count[name] for name in ("image", "video")}


def ddim_plan(schedule: NoiseSchedule, steps: int = 50, *, guidance: float = 7.5) -> Plan:
    """The video model alone, one DDIM step after another: the baseline of every comparison."""
    levels = _Levels(schedule, steps)
    return Plan(tuple((levels.ordinary(i, guidance),) for i in range(steps)))


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
) -> Plan:
    """The IV-Mixed Sampler (arXiv:2410.04171): before every ordinary step a zig-zag that ends at the level it began.

    Args:
        schedule: of the video model; its levels are the grid, every move goes between adjacent ones.
        combination: letters of the go-back moves, a dash, letters of the denoising moves, in the order they run.
        order: `denoise_first` (the released code) or `goback_first` (the paper's figure).
        interval: the part of the run in which the zig-zag is active, as fractions of the steps.
        image_guidance, video_guidance: guidance of the zig-zag at the first and last step of the run.
        rho: shape of the way between the two; 1 is a straight line.
        guidance: of the ordinary steps.
        image_schedule: of the image model where it differs; it is then evaluated at the timestep of equal
            noise-to-signal. None: the same schedule.

    Raises ValueError naming the parameter, its value and what is allowed.
    """
    goback, denoise = _letters(combination)
    begin, end = interval
    if not 0 <= begin <= end <= 1:
        raise ValueError(f"interval={interval} must be two fractions with 0 <= begin <= end <= 1")
    if order not in ("denoise_first", "goback_first"):
        raise ValueError(f"order={order!r} is not supported; use 'denoise_first' or 'goback_first'")
    levels = _Levels(schedule, steps, image_schedule)
    scales: dict[ModelName, list[float]] = {
        "image": _ramp("image_guidance", image_guidance, rho, steps),
        "video": _ramp("video_guidance", video_guidance, rho, steps),
    }
    active = range(round(begin * steps), round(end * steps))

    def zigzag(i: int) -> Iterator[Move]:
        # Levels i, i+1, i+2 below (denoise_first) or i, i-1, i-2 above (goback_first); none is left out of the grid.
        width, direction = len(goback), 1 if order == "denoise_first" else -1
        away = [i + direction * k for k in range(width + 1)]
        if not all(0 <= k <= steps for k in away) or (order == "denoise_first" and i == steps - 1):
            return
        back = away[::-1]
        first, second, sign = (denoise, goback, 1) if order == "denoise_first" else (goback, denoise, -1)
        for path, models, s in ((away, first, sign), (back, second, -sign)):
            for model, src, dst in zip(models, path, path[1:], strict=False):
                yield levels.move(model, src, dst, s * scales[model][i])

    return Plan(tuple((*(zigzag(i) if i in active else ()), levels.ordinary(i, guidance)) for i in range(steps)))


def official_plan(
    family: str,
    schedule: NoiseSchedule,
    steps: int = 50,
    *,
    interval: tuple[int, int] = (0, 49),
    image_guidance: Range = (4, 4),
    video_guidance: Range = (4, 4),
    rho: float = 7.0,
    zz: int = 1000,
    guidance: float = 7.5,
) -> Plan:
    """The authors' released code, quirks included (github xie-lab-ml/IV-mixed-Sampler, commit 54a7d5e).

    AnimateDiff: linspace timesteps, but every scheduler step moves by T // steps; the first denoising move runs the
    image model at the timestep of the second and the other way round; every `zz`-th step replaces the image model by
    the video model. `interval` is in step indices, both ends inclusive.
    """
    if family != "animatediff":
        raise ValueError(f"family={family!r} is not supported; use 'animatediff'")
    if zz < 1:
        raise ValueError(f"zz={zz} must be at least 1 (1 never runs the image model)")
    timesteps = schedule.timesteps(steps, "linspace")
    abar, count = schedule.alphas_cumprod, len(schedule)
    gap = count // steps

    def below(t: int) -> float:
        """The level that DDIMScheduler.step(t) ends at and DDIMInverseScheduler.step(t) starts from."""
        return abar[t - gap] if t >= gap else schedule.final_alpha

    begin, end = interval
    image_ramp = _ramp("image_guidance", image_guidance, rho, steps)
    video_ramp = _ramp("video_guidance", video_guidance, rho, steps)

    def moves(i: int, t: int) -> Iterator[Move]:
        if begin <= i <= end:
            p, q = max(0, t - gap), max(0, t - 2 * count // steps)
            first: ModelName = "video" if i % zz == zz - 1 else "image"
            g_first, g_video = (video_ramp if first == "video" else image_ramp)[i], video_ramp[i]
            yield Move(first, p, abar[p], below(p), g_first)
            yield Move("video", t, abar[t], below(t), g_video)
            yield Move(first, q, below(p), abar[p], -g_first)
            yield Move("video", p, below(t), abar[t], -g_video)
        yield Move("video", t, abar[t], below(t), guidance)

    return Plan(tuple(tuple(moves(i, t)) for i, t in enumerate(timesteps)))


class _Levels:
    """The grid L_0 .. L_N of one run: noise level and timestep of each, N being the clean end."""

    def __init__(self, schedule: NoiseSchedule, steps: int, image_schedule: NoiseSchedule | None = None) -> None:
        timesteps = schedule.timesteps(steps)
        self.alphas = [schedule.alphas_cumprod[t] for t in timesteps] + [schedule.alphas_cumprod[0]]
        self.final_alpha = schedule.final_alpha
        video = [*timesteps, 0]
        image = video if image_schedule is None else [image_schedule.nearest_timestep(a) for a in self.alphas]
        self.timesteps: dict[ModelName, Sequence[int]] = {"video": video, "image": image}

    def move(self, model: ModelName, src: int, dst: int, guidance: float) -> Move:
        # The zig-zag comes back from the clean end, where a network cannot be evaluated at abar = 1: there it
        # turns at timestep 0, as with set_alpha_to_one=False.
        return Move(model, self.timesteps[model][src], self.alphas[src], self.alphas[dst], guidance)

    def ordinary(self, i: int, guidance: float) -> Move:
        dst = self.final_alpha if i + 2 == len(self.alphas) else self.alphas[i + 1]
        return Move("video", self.timesteps["video"][i], self.alphas[i], dst, guidance)


def _letters(combination: str) -> tuple[list[ModelName], list[ModelName]]:
    goback, dash, denoise = combination.partition("-")
    if not dash or len(goback) != len(denoise) or len(goback) not in (1, 2) or set(goback + denoise) - set(LETTERS):
        raise ValueError(
            f"combination={combination!r} is not supported; write one or two letters of I (image) and V (video) "
            "on each side of a dash: go-back models - denoising models, for example 'IV-IV'"
        )
    return [LETTERS[c] for c in goback], [LETTERS[c] for c in denoise]


def _ramp(name: str, ends: Range, rho: float, n: int) -> list[float]:
    """n guidance scales from ends[0] to ends[1] with Karras-like spacing (the released code's "dynamic CFG scale")."""
    begin, end = ends
    if rho <= 0 or begin < 0 or end < 0:
        raise ValueError(f"{name}={ends} and rho={rho}: guidance must not be negative and rho must be positive")
    low, high = begin ** (1 / rho), end ** (1 / rho)
    return [begin if n == 1 or begin == end else (low + i / (n - 1) * (high - low)) ** rho for i in range(n)]
