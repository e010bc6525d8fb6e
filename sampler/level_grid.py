"""The grid of noise levels that one run visits, and the moves between adjacent levels of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from sampler.denoise_and_goback_moves import Call, ModelName, Move, MultistepMove, ZeroVelocity
from sampler.errors import InvalidSetting
from sampler.guidance_rules import CfgZeroStar, GuidanceRule, with_rule
from sampler.noise_schedule import NoiseSchedule
from sampler.prediction import flow_level
from sampler.schedule import Schedule, check_schedule
from sampler.validation import one_of

Solver = Literal["ddim", "dpmpp-2m"]
# A run of fewer steps ends with a first-order step, as in diffusers (`lower_order_final`): the second order overshoots.
SHORT_RUN = 15


class LevelGrid:
    """The levels 0 .. `steps` of a run, noisiest first; level `steps` is the clean end.

    Args:
        schedule: noise schedule of the video model; its levels are the grid.
        steps: number of ordinary steps.
        image_schedule: noise schedule of the image model, which is called at the timestep of equal signal-to-noise
            ratio: families meet at equal abar, two flows so at equal s. None: the same schedule.
        solver: of the ordinary steps.
        rule: of the guidance of the ordinary steps. None: classifier-free guidance.

    Raises:
        InvalidSetting: `schedule` cannot be run in `steps` steps, `solver` is unknown, or `rule` leaves no step.
    """

    def __init__(
        self,
        schedule: Schedule,
        steps: int,
        image_schedule: Schedule | None = None,
        solver: Solver = "ddim",
        rule: GuidanceRule | None = None,
    ) -> None:
        one_of("solver", solver, get_args(Solver))
        check_schedule("schedule", schedule)
        levels = schedule.levels(steps)
        self.steps = len(levels)
        self.solver: Solver = solver
        self.rule = rule
        self.zero_steps = zero_steps(rule, self.steps)
        # No network can be evaluated at abar = 1. A zig-zag that reaches the clean end turns at the cleanest level that
        # networks know, or at the last one of the run if that is even cleaner.
        turn = max(schedule.turn, levels[-1], key=lambda level: level.alpha)
        self.alphas = [level.alpha for level in (*levels, turn)]
        self.final_alpha = schedule.final_alpha
        video = image = [level.timestep for level in (*levels, turn)]
        if image_schedule is not None:
            check_schedule("image_schedule", image_schedule)
            image = [image_schedule.timestep_at(alpha) for alpha in self.alphas]
        self._timesteps: dict[ModelName, Sequence[float]] = {"video": video, "image": image}
        self._image_begins = _image_begins(schedule, image_schedule, self.alphas)

    def timestep(self, model: ModelName, level: int) -> float:
        """Raises InvalidSetting if the level is noisier than any that the image model knows."""
        if model == "image" and level < self._image_begins:
            begin = math.ceil(100 * self._image_begins / self.steps) / 100
            raise InvalidSetting(
                f"the image model would be called at level {level}, s = {flow_level(self.alphas[level]):.3f}, noisier "
                f"than any it was trained at: begin its interval at {begin:g} or later, with order='goback_first' one "
                "or two steps later than that"
            )
        return self._timesteps[model][level]

    def move(self, model: ModelName, src: int, dst: int, guidance: float) -> Move:
        """From level `src` to level `dst`."""
        return Move(model, self.timestep(model, src), self.alphas[src], self.alphas[dst], guidance)

    def call(self, model: ModelName, level: int, guidance: float, *, uncond: float = 1.0) -> Call:
        return Call(model, self.timestep(model, level), self.alphas[level], guidance, uncond)

    def ordinary_step(self, i: int, guidance: float, model: ModelName = "video") -> Move | MultistepMove | ZeroVelocity:
        if i < self.zero_steps:
            return ZeroVelocity(self.alphas[i], self.alpha_after(i))
        scale = with_rule(guidance, self.rule)
        step = model, self.timestep(model, i), self.alphas[i], self.alpha_after(i), scale
        if self.solver == "ddim":
            return Move(*step)
        is_last = i == self.steps - 1
        is_first_order = i == self.zero_steps or (is_last and (self.steps < SHORT_RUN or self.final_alpha == 1))
        return MultistepMove(*step, None if is_first_order else self.alphas[i - 1])

    def alpha_after(self, i: int) -> float:
        """abar after the ordinary step `i`."""
        return self.final_alpha if i == self.steps - 1 else self.alphas[i + 1]


def _image_begins(schedule: Schedule, image_schedule: Schedule | None, alphas: Sequence[float]) -> int:
    """The first level that the image model can be called at.

    Two schedules of betas end close to each other, so there the image model keeps its last timestep (AnimateDiff's next
    to Stable Diffusion's). A flow's levels go on to pure noise, far beyond that.
    """
    if not isinstance(image_schedule, NoiseSchedule):
        return 0
    noisiest, is_flow = image_schedule.alphas_cumprod[-1], not isinstance(schedule, NoiseSchedule)
    return sum(alpha < noisiest and (is_flow or alpha == 0) for alpha in alphas)


def zero_steps(rule: GuidanceRule | None, steps: int) -> int:
    """How many steps at the start of a run have velocity 0. Raises InvalidSetting if none is left after them."""
    count = rule.zero_init_steps if isinstance(rule, CfgZeroStar) else 0
    if count >= steps:
        raise InvalidSetting(f"zero_init_steps={count} must be less than the {steps} steps of the run")
    return count
