"""The noise levels of a rectified flow (arXiv:2209.03003): z = (1 - s) x0 + s eps, s from 1 (noise) to 0 (clean).

A shift changes which levels a run visits, s' = shift s / (1 + (shift - 1) s) (arXiv:2403.03206 Eq. 23), not what a
level means: two flow networks match at equal s, whatever their shifts.
"""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, cast, get_args

import torch

from sampler.errors import InvalidSetting
from sampler.flow_config import flow_settings
from sampler.prediction import PredictionType, alpha_at, flow_level
from sampler.schedule import Level
from sampler.validation import finite_number, one_of, pair_of_numbers, whole_number

FlowGrid = Literal["euler", "unipc", "dpmsolver", "uniform", "karras"]
FinalSigmas = Literal["zero", "sigma_min"]

RHO = 7.0  # of "karras" (arXiv:2206.00364 Eq. 5)


@dataclass(frozen=True)
class FlowSchedule:
    """The noise levels of one rectified-flow network, and the grid of its runs; levels are float32, as in diffusers.

    Args:
        shift: above 0, see the module; more than 1 spends more steps at noisy levels. Not used by "karras".
        spacing: the levels before the shift, for n steps and N training timesteps:
            "euler": from 1 to the shifted 1/N, as FlowMatchEulerDiscreteScheduler (its last level is shifted twice);
            "unipc": from 1, evenly, to one step above 1/N, as UniPCMultistepScheduler (Wan's own);
            "dpmsolver": from 1 - 1/N to one step above 0, as DPMSolverMultistepScheduler (SANA's own);
            "uniform": from 1 to 1/n, as pipelines with a dynamic shift give their scheduler (Qwen-Image, FLUX, LTX);
            "karras": noise-to-signal ratios between those of `sigma_range` (Cosmos).
        time_scale: what the network is given for level s is s times this: 1000 for Wan, LTX, HunyuanVideo; 1 for Cosmos
            and Qwen-Image.
        shift_terminal: the levels are stretched so that the last one is this, in (0, 1). None: as they are.
        num_train_timesteps: N, from 2. 1/N is also the cleanest level at which a network is called by go-back moves.
        sigma_range: (first, last) noise-to-signal ratio s / (1 - s) of "karras".
        final_sigmas_type: where the last step ends: "zero", the clean end; with "karras" also "sigma_min", the last
            level, so that the last step changes nothing, as in Cosmos' pipelines.

    Raises:
        InvalidSetting: names the field, its value and what is allowed.
    """

    shift: float = 1.0
    spacing: FlowGrid = "euler"
    time_scale: float = 1000.0
    shift_terminal: float | None = None
    num_train_timesteps: int = 1000
    sigma_range: tuple[float, float] = (80.0, 0.002)
    final_sigmas_type: FinalSigmas = "zero"

    def __post_init__(self) -> None:
        for name in ("shift", "time_scale"):
            if finite_number(name, getattr(self, name)) <= 0:
                raise InvalidSetting(f"{name}={getattr(self, name)!r} must be greater than 0")
        one_of("spacing", self.spacing, get_args(FlowGrid))
        one_of("final_sigmas_type", self.final_sigmas_type, get_args(FinalSigmas))
        if self.shift_terminal is not None and not 0 < finite_number("shift_terminal", self.shift_terminal) < 1:
            raise InvalidSetting(f"shift_terminal={self.shift_terminal!r} must be in (0, 1), or None")
        if whole_number("num_train_timesteps", self.num_train_timesteps) < 2:
            raise InvalidSetting(f"num_train_timesteps={self.num_train_timesteps!r} must be at least 2")
        meaning = "the first and the last noise-to-signal ratio: finite, the first above the last, and that above 0"
        first, last = pair_of_numbers("sigma_range", self.sigma_range, meaning)
        if not math.inf > first > last > 0:
            raise InvalidSetting(f"sigma_range={self.sigma_range!r} must be {meaning}")
        if self.spacing == "karras" and (self.shift != 1 or self.shift_terminal is not None):
            raise InvalidSetting(
                f"spacing='karras' takes its levels from sigma_range, not from shift={self.shift!r} and "
                f"shift_terminal={self.shift_terminal!r}; leave these out"
            )
        if self.spacing != "karras" and self.final_sigmas_type != "zero":
            raise InvalidSetting(f"final_sigmas_type='sigma_min' works with spacing='karras', not {self.spacing!r}")

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, tokens: int | None = None, time_scale: float | None = None
    ) -> Self:
        """From a diffusers scheduler config of a flow model.

        Args:
            config: `scheduler.config`, or the contents of a scheduler_config.json, of FlowMatchEulerDiscreteScheduler,
                or of UniPCMultistepScheduler or DPMSolverMultistepScheduler with use_flow_sigmas.
            tokens: tokens of one sample of the network, which a dynamic shift depends on: for Qwen-Image and FLUX
                (h/2)(w/2) of the latents. Only with use_dynamic_shifting.
            time_scale: as in `FlowSchedule`; a scheduler does not know what its network is given. None: 1 for
                "karras", else 1000.

        Raises:
            InvalidSetting: the config has a feature that is not supported, or `tokens` is missing or superfluous.
        """
        settings = flow_settings(config, tokens)
        default = 1.0 if settings["spacing"] == "karras" else 1000.0
        return cls(**settings, time_scale=default if time_scale is None else time_scale)

    @property
    def prediction_type(self) -> PredictionType:
        return "flow"

    @property
    def final_alpha(self) -> float:
        """abar after the last step: 1, or that of the last level, see `final_sigmas_type`."""
        return 1.0 if self.final_sigmas_type == "zero" else self._level(_level_of_ratio(self.sigma_range[1])).alpha

    @property
    def turn(self) -> Level:
        """s = 1/N, the analogue of timestep 0."""
        return self._level(1 / self.num_train_timesteps)

    def sigmas(self, steps: int) -> tuple[float, ...]:
        """s of the levels of a run, in (0, 1], noisiest first, without the clean end; float32 values.

        Args:
            steps: how many, from 1 to `num_train_timesteps`; with `shift_terminal` or "sigma_min" from 2.

        Raises:
            InvalidSetting: `steps` is outside that range.
        """
        n = whole_number("steps", steps, ", the timesteps of this schedule", most=self.num_train_timesteps)
        if n == 1 and (self.shift_terminal is not None or self.final_sigmas_type == "sigma_min"):
            raise InvalidSetting("steps=1 must be at least 2: this schedule says where its first and last level are")
        if self.spacing == "karras":
            first, last = (ratio ** (1 / RHO) for ratio in self.sigma_range)
            return _float32([_level_of_ratio(root**RHO) for root in _line(first, last, n)])
        levels = [self._shifted(s) for s in self._unshifted(n)]
        if self.shift_terminal is not None:
            stretch = (1 - levels[-1]) / (1 - self.shift_terminal)
            levels = [1 - (1 - s) / stretch for s in levels]
        return _float32(levels)

    def levels(self, steps: int) -> tuple[Level, ...]:
        """See `Schedule`; at `sigmas(steps)`."""
        return tuple(self._level(s) for s in self.sigmas(steps))

    def timestep_at(self, alpha: float) -> float:
        """See `Schedule`; any level has a timestep, which need not be whole."""
        return self._level(flow_level(alpha)).timestep

    def _unshifted(self, n: int) -> list[float]:
        least = 1 / self.num_train_timesteps
        match self.spacing:
            case "euler":
                return _line(1.0, _float32([self._shifted(_float32([least])[0])])[0], n)
            case "unipc":
                return _line(1.0, least, n + 1)[:-1]
            case "dpmsolver":
                return _line(1 - least, 0.0, n + 1)[:-1]
            case _:
                return _line(1.0, 1 / n, n)

    def _shifted(self, s: float) -> float:
        return self.shift * s / (1 + (self.shift - 1) * s)

    def _level(self, s: float) -> Level:
        (level,) = _float32([s])
        return Level(_float32([level * self.time_scale])[0], alpha_at(level))


def _level_of_ratio(ratio: float) -> float:
    """s of the noise-to-signal ratio s / (1 - s)."""
    return ratio / (1 + ratio)


def _line(begin: float, end: float, count: int) -> list[float]:
    """`count` evenly spaced numbers."""
    return [begin + (end - begin) * i / max(count - 1, 1) for i in range(count)]


def _float32(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(cast("list[float]", torch.tensor(values, dtype=torch.float32).tolist()))
