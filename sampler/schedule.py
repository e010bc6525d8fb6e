"""What plans need to know of the noise levels of a network, whatever it predicts."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from sampler.errors import InvalidSetting
from sampler.prediction import PredictionType


class Level(NamedTuple):
    """A noise level.

    Args:
        timestep: what the network is given for it; not always a whole number.
        alpha: abar in [0, 1], the level in every other respect: families are matched at equal abar.
    """

    timestep: float
    alpha: float


@runtime_checkable
class Schedule(Protocol):
    """The noise levels of one network: `NoiseSchedule` for betas, `FlowSchedule` for rectified flows."""

    @property
    def prediction_type(self) -> PredictionType:
        """What the network predicts."""
        ...

    @property
    def final_alpha(self) -> float:
        """abar after the last step of a run; 1: no noise is left."""
        ...

    @property
    def turn(self) -> Level:
        """The cleanest level that a network can be called at. A zig-zag that reaches the clean end turns there."""
        ...

    def levels(self, steps: int) -> tuple[Level, ...]:
        """The levels of a run of `steps` steps, noisiest first, without the clean end.

        Raises:
            InvalidSetting: the schedule cannot be run in so many steps.
        """
        ...

    def timestep_at(self, alpha: float) -> float:
        """The timestep of this network at the signal-to-noise ratio of abar `alpha` in [0, 1]."""
        ...


def check_schedule(name: str, value: Any) -> None:  # Any: what a caller passed is checked
    if isinstance(value, type) or not isinstance(value, Schedule):
        raise InvalidSetting(
            f"{name}={value!r} must be a NoiseSchedule; from a diffusers scheduler: "
            "NoiseSchedule.from_config(scheduler.config), or of a flow model FlowSchedule.from_config(scheduler.config)"
        )
