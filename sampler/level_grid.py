"""The grid of noise levels that one run visits, and the moves between adjacent levels of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from sampler.denoise_and_goback_moves import Call, ModelName, Move, MultistepMove, ZeroVelocity
from sampler.errors import InvalidSetting
from sampler.guidance_rules import CfgZeroStar, GuidanceRule, with_rule
from sampler.noise_schedule import NoiseSchedule, check_schedule
from sampler.validation import one_of

Solver = Literal["ddim", "dpmpp-2m"]
# A run of fewer steps ends with a first-order step, as in diffusers (`lower_order_final`): the second order overshoots.
SHORT_RUN = 15


class LevelGrid:
    """The levels 0 .. `steps` of a run, noisiest first; level `steps` is the clean end.

    Args:
        schedule: noise schedule of the video model; its timesteps are the grid.
        steps: number of ordinary steps.
        image_schedule: noise schedule of the image model, which is called at the timestep of equal noise-to-signal.
            None: the same schedule.
        solver: of the ordinary steps.
        rule: of the guidance of the ordinary steps. None: classifier-free guidance.

    Raises:
        InvalidSetting: `schedule` cannot be run in `steps` steps, `solver` is unknown, or `rule` leaves no step.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        steps: int,
        image_schedule: NoiseSchedule | None = None,
        solver: Solver = "ddim",
        rule: GuidanceRule | None = None,
    ) -> None:
        one_of("solver", solver, get_args(Solver))
        check_schedule("schedule", schedule)
        timesteps = schedule.timesteps(steps)
        self.steps = len(timesteps)
        self.solver: Solver = solver
        self.rule = rule
        self.zero_steps = zero_steps(rule, self.steps)
        # No network can be evaluated at abar = 1. A zig-zag that reaches the clean end turns at timestep 0 instead, as
        # with set_alpha_to_one=False.
        self.alphas = [*(schedule.alphas_cumprod[t] for t in timesteps), schedule.alphas_cumprod[0]]
        self.final_alpha = schedule.final_alpha
        video = image = [*timesteps, 0]
        if image_schedule is not None:
            check_schedule("image_schedule", image_schedule)
            image = [image_schedule.nearest_timestep(alpha) for alpha in self.alphas]
        self.timesteps: dict[ModelName, Sequence[int]] = {"video": video, "image": image}

    def move(self, model: ModelName, src: int, dst: int, guidance: float) -> Move:
        """From level `src` to level `dst`."""
        return Move(model, self.timesteps[model][src], self.alphas[src], self.alphas[dst], guidance)

    def call(self, model: ModelName, level: int, guidance: float, *, uncond: float = 1.0) -> Call:
        return Call(model, self.timesteps[model][level], self.alphas[level], guidance, uncond)

    def ordinary_step(self, i: int, guidance: float, model: ModelName = "video") -> Move | MultistepMove | ZeroVelocity:
        if i < self.zero_steps:
            return ZeroVelocity(self.alphas[i], self.alpha_after(i))
        scale = with_rule(guidance, self.rule)
        step = model, self.timesteps[model][i], self.alphas[i], self.alpha_after(i), scale
        if self.solver == "ddim":
            return Move(*step)
        is_last = i == self.steps - 1
        is_first_order = i == self.zero_steps or (is_last and (self.steps < SHORT_RUN or self.final_alpha == 1))
        return MultistepMove(*step, None if is_first_order else self.alphas[i - 1])

    def alpha_after(self, i: int) -> float:
        """abar after the ordinary step `i`."""
        return self.final_alpha if i == self.steps - 1 else self.alphas[i + 1]


def zero_steps(rule: GuidanceRule | None, steps: int) -> int:
    """How many steps at the start of a run have velocity 0. Raises InvalidSetting if none is left after them."""
    count = rule.zero_init_steps if isinstance(rule, CfgZeroStar) else 0
    if count >= steps:
        raise InvalidSetting(f"zero_init_steps={count} must be less than the {steps} steps of the run")
    return count
