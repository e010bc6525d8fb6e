"""The noise levels that a sampling run visits: training timesteps, or a shifted grid of a flow-matching model."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from service.frozen_model import FrozenModel


class Spacing(FrozenModel):
    """Timestep spacing of a scheduler. Field names are those of diffusers' scheduler configs, the defaults those of
    Stable Diffusion."""

    timestep_spacing: Literal["linspace", "leading", "trailing"] = "leading"
    steps_offset: int = Field(default=1, ge=0)
    set_alpha_to_one: bool = False
    num_train_timesteps: int = Field(default=1000, ge=1)
    is_estimate: bool = Field(
        default=False,
        exclude_if=lambda is_estimate: not is_estimate,
        description="made without the model's files: the worker takes the spacing that its files say",
    )

    def timesteps(self, steps: int) -> list[int]:
        """Return the timesteps of a run, noisiest first (arXiv:2305.08891, Table 2)."""
        count = self.num_train_timesteps
        match self.timestep_spacing:
            case "linspace":
                gap = (count - 1) / max(steps - 1, 1)
                ladder = [round(i * gap) for i in reversed(range(steps))]
            case "leading":
                ladder = [i * (count // steps) + self.steps_offset for i in reversed(range(steps))]
            case "trailing":
                gap = count - (count - count / steps)  # as numpy.arange rounds it
                ladder = [round(count - i * gap) - 1 for i in range(steps)]
        return [min(t, count - 1) for t in ladder]


class FlowSpacing(FrozenModel):
    """The levels of a run of a flow-matching model, x = (1 - s) x_0 + s eps: an even grid of s, shifted by
    s' = shift s / (1 + (shift - 1) s) (arXiv:2403.03206, section 5.3.2)."""

    kind: Literal["flow"] = "flow"
    shift: float = Field(gt=0, le=1000)
    is_estimate: bool = Field(
        default=False,
        exclude_if=lambda is_estimate: not is_estimate,
        description="made without the model's files: the worker takes the shift that its files say",
    )

    num_train_timesteps: ClassVar[int] = 1000
    set_alpha_to_one: ClassVar[bool] = True  # the last step ends at s = 0

    def timesteps(self, steps: int) -> list[int]:
        """A number for each level of a run, noisiest first: no two levels are the same, which is all that counting
        network calls needs."""
        return list(range(steps, 0, -1))


AnySpacing = Spacing | FlowSpacing
