"""The noise levels of one run, the moves between them, and the guidance scales along them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sampler.errors import InvalidSetting
from sampler.moves import Call, ModelName, Move
from sampler.noise_schedule import NoiseSchedule

Range = tuple[float, float]


class Grid:
    """The levels L_0 .. L_N of a run: noise level and timestep of each, N being the clean end.

    Raises InvalidSetting if the schedule cannot be run in so many steps.
    """

    def __init__(self, schedule: NoiseSchedule, steps: int, image_schedule: NoiseSchedule | None = None) -> None:
        timesteps = schedule.timesteps(steps)
        self.steps = steps
        # The zig-zag comes back from the clean end, where a network cannot be evaluated at abar = 1: there it turns at
        # timestep 0, as with set_alpha_to_one=False.
        self.alphas = [schedule.alphas_cumprod[t] for t in timesteps] + [schedule.alphas_cumprod[0]]
        self.final_alpha = schedule.final_alpha
        video = [*timesteps, 0]
        image = video if image_schedule is None else [image_schedule.nearest_timestep(a) for a in self.alphas]
        self.timesteps: dict[ModelName, Sequence[int]] = {"video": video, "image": image}

    def move(self, model: ModelName, src: int, dst: int, guidance: float) -> Move:
        return Move(model, self.timesteps[model][src], self.alphas[src], self.alphas[dst], guidance)

    def call(self, model: ModelName, i: int, guidance: float, *, uncond: float = 1.0) -> Call:
        return Call(model, self.timesteps[model][i], self.alphas[i], guidance, uncond)

    def below(self, i: int) -> float:
        """The level that the ordinary step i ends at."""
        return self.final_alpha if i == self.steps - 1 else self.alphas[i + 1]

    def ordinary(self, i: int, guidance: float) -> Move:
        return Move("video", self.timesteps["video"][i], self.alphas[i], self.below(i), guidance)


def scales(name: str, ends: Range, rho: float, n: int) -> list[float]:
    """n guidance scales from ends[0] to ends[1] with Karras-like spacing (the released code's "dynamic CFG scale").

    Raises InvalidSetting if an end is negative or not finite, or if rho is not positive and finite.
    """
    begin, end = ends
    if not (0 <= begin < math.inf and 0 <= end < math.inf and 0 < rho < math.inf):
        raise InvalidSetting(
            f"{name}={ends} and rho={rho}: guidance must be finite and not negative, rho finite and positive"
        )
    low, high = begin ** (1 / rho), end ** (1 / rho)
    return [begin if n == 1 or begin == end else (low + i / (n - 1) * (high - low)) ** rho for i in range(n)]


def finite(name: str, value: float) -> float:
    """`value`; raises InvalidSetting if it is NaN or infinite."""
    if not math.isfinite(value):
        raise InvalidSetting(f"{name}={value} must be a finite number")
    return value


def active_steps(interval: Range, steps: int) -> range:
    """The steps that `interval`, two fractions of the run, covers. Raises InvalidSetting if it is none."""
    begin, end = interval
    if not 0 <= begin <= end <= 1:
        raise InvalidSetting(f"interval={interval} must be two fractions with 0 <= begin <= end <= 1")
    return range(round(begin * steps), round(end * steps))
