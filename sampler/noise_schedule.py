"""Noise schedules: the noise level of each timestep a network was trained with, and the timestep spacing of a run.

Notation: abar = cumulative alpha product, x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps (arXiv:2006.11239 Eq. 4),
noise-to-signal ratio s = sqrt((1 - abar) / abar).
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, Self, cast, get_args

import torch
from torch import Tensor

from sampler.errors import InvalidSetting
from sampler.prediction import PredictionType
from sampler.schedule import Level, check_schedule
from sampler.scheduler_config import complete_config
from sampler.terminal_snr import shifted_snr, through_betas, zero_terminal_snr
from sampler.validation import finite_number, one_of, whole_number

TimestepSpacing = Literal["linspace", "leading", "trailing"]
PREDICTION_TYPES = ("epsilon", "v_prediction")

DISTILLED_TIMESTEPS = 50  # of latent consistency models; `original_inference_steps` of diffusers


@dataclass(frozen=True, repr=False)
class NoiseSchedule:
    """The variance-preserving noise schedule of one network; defaults are Stable Diffusion's scheduler config.

    Args:
        alphas_cumprod: abar of each timestep as Python floats, timestep 0 first, strictly decreasing in (0, 1]; the
            last may be 0 (zero terminal SNR, arXiv:2305.08891) if the network predicts v. They have the values that
            diffusers computes, mostly float32: a network was trained at exactly these levels.
        timestep_spacing: how a run chooses its timesteps: "linspace", "leading" or "trailing" (arXiv:2305.08891
            Table 2).
        steps_offset: added to the timesteps of "leading".
        set_alpha_to_one: whether the last step ends at abar = 1 instead of that of timestep 0.
        prediction_type: what the network predicts, "epsilon" or "v_prediction".

    Raises:
        InvalidSetting: names the field, its value and what is allowed.
    """

    alphas_cumprod: tuple[float, ...]
    timestep_spacing: TimestepSpacing = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    prediction_type: PredictionType = "epsilon"

    def __post_init__(self) -> None:
        one_of("prediction_type", self.prediction_type, PREDICTION_TYPES)
        alphas, descending = self.alphas_cumprod, all(h > low for h, low in itertools.pairwise(self.alphas_cumprod))
        has_signal = bool(alphas) and (alphas[-1] > 0 or (alphas[-1] == 0 and self.prediction_type == "v_prediction"))
        if not descending or not has_signal or alphas[0] > 1:
            raise InvalidSetting(
                "alphas_cumprod must decrease strictly and stay in (0, 1]; a schedule rescaled to zero terminal SNR "
                "ends at 0, which only networks that predict v can start from: use the schedule of one that predicts "
                "epsilon without rescale_betas_zero_snr"
            )
        one_of("timestep_spacing", self.timestep_spacing, get_args(TimestepSpacing))
        _check_run_settings(self.steps_offset, self.set_alpha_to_one)

    def __repr__(self) -> str:
        others = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name != "alphas_cumprod")
        ends = f"{self.alphas_cumprod[0]:.4g}..{self.alphas_cumprod[-1]:.4g}"
        return f"NoiseSchedule(<{len(self)} timesteps, alphas_cumprod {ends}>, {others})"

    @classmethod
    def scaled_linear(
        cls,
        beta_start: float,
        beta_end: float,
        steps: int = 1000,
        *,
        dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> Self:
        """Betas whose square roots are evenly spaced (arXiv:2112.10752; Stable Diffusion).

        Args:
            beta_start, beta_end: first and last beta, in (0, 1).
            steps: number of timesteps.
            dtype: of the betas' arithmetic; CogVideoX's is float64.
            settings: the other fields of the schedule.
        """
        _check_betas(beta_start, beta_end, steps)
        return cls(_cumulate(torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=dtype) ** 2), **settings)

    @classmethod
    def linear(cls, beta_start: float, beta_end: float, steps: int = 1000, **settings: Any) -> Self:
        """Evenly spaced betas (arXiv:2006.11239 Sec. 4; AnimateDiff's motion modules). Args as in `scaled_linear`."""
        _check_betas(beta_start, beta_end, steps)
        return cls(_cumulate(torch.linspace(beta_start, beta_end, steps, dtype=torch.float32)), **settings)

    @classmethod
    def squaredcos(cls, steps: int = 1000, **settings: Any) -> Self:
        """abar follows a squared cosine, betas are capped at 0.999 (arXiv:2102.09672 Eq. 17; "squaredcos_cap_v2").

        Args:
            steps: number of timesteps.
            settings: the other fields of the schedule.
        """
        whole_number("steps", steps)
        abar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        betas = [min(1 - low / high, 0.999) for high, low in itertools.pairwise(abar)]
        return cls(_cumulate(torch.tensor(betas, dtype=torch.float32)), **settings)

    @classmethod
    def from_betas(cls, betas: Sequence[float], steps: int, **settings: Any) -> Self:
        """The betas themselves ("trained_betas"), one for each of `steps` timesteps. Args as in `scaled_linear`."""
        whole_number("steps", steps)
        if len(betas) != steps or not all(0 < finite_number("trained_betas", beta) < 1 for beta in betas):
            raise InvalidSetting(f"trained_betas must be {steps} numbers in (0, 1), one for each timestep")
        return cls(_cumulate(torch.tensor(list(betas), dtype=torch.float32)), **settings)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """From a diffusers scheduler config.

        Args:
            config: `scheduler.config`, or the contents of a scheduler_config.json. Missing keys: see
                `sampler.scheduler_config`. What only other samplers read, such as use_karras_sigmas, is ignored.

        Raises:
            InvalidSetting: the config has a feature that is not supported; the message names it.
        """
        complete = complete_config(config)
        zero_snr, shift = complete.pop("rescale_betas_zero_snr"), complete.pop("snr_shift_scale")
        steps, trained = complete.pop("num_train_timesteps"), complete.pop("trained_betas")
        beta_schedule, *betas = (complete.pop(key) for key in ("beta_schedule", "beta_start", "beta_end"))
        if trained is not None:
            return cls.from_betas(trained, steps, **complete)._rescaled(zero_snr, shift)
        dtype = torch.float32 if shift is None else torch.float64
        make: dict[str, Callable[..., Self]] = {
            "linear": partial(cls.linear, *betas),
            "scaled_linear": partial(cls.scaled_linear, *betas, dtype=dtype),
            "squaredcos_cap_v2": cls.squaredcos,
        }
        one_of("beta_schedule", beta_schedule, tuple(make))
        return make[beta_schedule](steps=steps, **complete)._rescaled(zero_snr, shift)

    def _rescaled(self, zero_snr: bool, shift: float | None) -> Self:
        """The schedule after what RESCALING of `sampler.scheduler_config` names."""
        if not zero_snr and shift is None:
            return self
        if shift is None:
            alphas = through_betas(zero_terminal_snr(torch.tensor(self.alphas_cumprod)))
        else:
            if finite_number("snr_shift_scale", shift) <= 0:
                raise InvalidSetting(f"snr_shift_scale={shift!r} must be greater than 0 (1: no shift)")
            alphas = shifted_snr(torch.tensor(self.alphas_cumprod, dtype=torch.float64), shift)
            alphas = zero_terminal_snr(alphas) if zero_snr else alphas
        return replace(self, alphas_cumprod=_floats(alphas))

    def __len__(self) -> int:
        """Number of timesteps the network was trained with."""
        return len(self.alphas_cumprod)

    @property
    def final_alpha(self) -> float:
        """abar after the last step of a run: 1 (no noise left) or that of timestep 0, see `set_alpha_to_one`."""
        return 1.0 if self.set_alpha_to_one else self.alphas_cumprod[0]

    @property
    def turn(self) -> Level:
        """Timestep 0, where a zig-zag that reaches the clean end turns, as with set_alpha_to_one=False."""
        return Level(0, self.alphas_cumprod[0])

    def levels(self, steps: int) -> tuple[Level, ...]:
        """See `Schedule`; at `timesteps(steps)`."""
        return tuple(Level(t, self.alphas_cumprod[t]) for t in self.timesteps(steps))

    def timestep_at(self, alpha: float) -> int:
        """See `Schedule`; a network of betas was trained at whole timesteps, so it gets the nearest of them."""
        return self.nearest_timestep(alpha)

    def timesteps(self, steps: int, spacing: TimestepSpacing | None = None) -> tuple[int, ...]:
        """The timesteps of a run (arXiv:2305.08891 Table 2; the same integers as diffusers).

        Args:
            steps: how many, from 1 to the length of the schedule.
            spacing: None: `timestep_spacing`.

        Returns:
            Timesteps in 0..len - 1, noisiest first.

        Raises:
            InvalidSetting: `steps` is outside that range.
        """
        count = len(self)
        n = whole_number("steps", steps, ", the timesteps this network was trained with", most=count)
        match spacing or self.timestep_spacing:
            case "linspace":
                gap = (count - 1) / max(n - 1, 1)
                timesteps = [round(i * gap) for i in reversed(range(n))]
            case "leading":
                timesteps = [i * (count // n) + self.steps_offset for i in reversed(range(n))]
            case "trailing":
                gap = count - (count - count / n)  # as numpy.arange rounds it
                timesteps = [round(count - i * gap) - 1 for i in range(n)]
        return tuple(min(t, count - 1) for t in timesteps)

    def consistency_timesteps(self, steps: int) -> tuple[int, ...]:
        """The timesteps of a run of a latent consistency model: evenly spaced among the 50 that it was distilled at
        (arXiv:2310.04378 Sec. 4.3; the same integers as diffusers' LCMScheduler).

        Args:
            steps: how many, from 1 to 50.

        Returns:
            Timesteps in 0..len - 1, noisiest first.

        Raises:
            InvalidSetting: `steps` is outside that range, or the schedule has fewer than 50 timesteps.
        """
        if len(self) < DISTILLED_TIMESTEPS:
            raise InvalidSetting(
                f"solver='lcm' needs a schedule of at least {DISTILLED_TIMESTEPS} timesteps, this one has {len(self)}"
            )
        most = DISTILLED_TIMESTEPS
        n = whole_number("steps", steps, ", the timesteps that consistency models are distilled at", most=most)
        gap = len(self) // most
        return tuple((most - math.floor(i * most / n)) * gap - 1 for i in range(n))

    def nearest_timestep(self, alpha: float) -> int:
        """The timestep with the noise-to-signal ratio nearest to that of abar `alpha` in [0, 1], compared in log.

        Noise levels outside this schedule give its first or last timestep.
        """
        log_s = [_log_noise_to_signal(a) for a in self.alphas_cumprod]  # increases with t
        target = _log_noise_to_signal(alpha)
        above = bisect.bisect_left(log_s, target)
        near = [t for t in (above - 1, above) if 0 <= t < len(self)]
        return min(near, key=lambda t: 0 if log_s[t] == target else abs(log_s[t] - target))  # infinities may be equal


def noise_schedule(name: str, value: Any, purpose: str) -> NoiseSchedule:  # Any: what a caller passed is checked
    """`value`, if it is one of betas. Raises InvalidSetting for other schedules: `purpose` needs whole timesteps."""
    check_schedule(name, value)
    if not isinstance(value, NoiseSchedule):
        raise InvalidSetting(f"{name}={value!r} must be a NoiseSchedule: {purpose}")
    return value


def _log_noise_to_signal(alpha: float) -> float:
    if alpha <= 0:
        return math.inf
    return -math.inf if alpha >= 1 else 0.5 * math.log((1 - alpha) / alpha)


def _cumulate(betas: Tensor) -> tuple[float, ...]:
    return _floats(torch.cumprod(1.0 - betas, dim=0))


def _floats(alphas: Tensor) -> tuple[float, ...]:
    return tuple(cast("list[float]", alphas.tolist()))  # pyright: ignore[reportUnknownMemberType]


def _check_run_settings(steps_offset: Any, set_alpha_to_one: Any) -> None:  # Any: what a caller passed is checked
    if not isinstance(steps_offset, int) or isinstance(steps_offset, bool) or steps_offset < 0:
        raise InvalidSetting(f"steps_offset={steps_offset!r} must be a whole number of at least 0")
    if not isinstance(set_alpha_to_one, bool):
        raise InvalidSetting(f"set_alpha_to_one={set_alpha_to_one!r} must be True or False")


def _check_betas(beta_start: Any, beta_end: Any, steps: Any) -> None:  # Any: what a caller passed is checked
    whole_number("steps", steps)
    for name, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
        if not 0 < finite_number(name, beta) < 1:
            raise InvalidSetting(f"{name}={beta!r} must be in (0, 1)")
