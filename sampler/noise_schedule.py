"""Noise schedules: the cumulative alphas a network was trained with, and the timesteps a run visits.

Letters: abar = cumulative alpha, x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps, noise-to-signal s^2 = (1 - abar) / abar.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self, cast, get_args

import torch
from torch import Tensor

from sampler.errors import InvalidSetting

TimestepSpacing = Literal["linspace", "leading", "trailing"]
PredictionType = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class NoiseSchedule:
    """The variance-preserving schedule of one network; defaults are Stable Diffusion's scheduler config.

    `alphas_cumprod` are Python floats, timestep 0 first. They carry float32 values, as diffusers computes them: a
    network was trained at exactly these levels.
    """

    alphas_cumprod: tuple[float, ...]
    timestep_spacing: TimestepSpacing = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    prediction_type: PredictionType = "epsilon"

    def __post_init__(self) -> None:
        if not all(
            0 < low < high <= 1 for high, low in zip(self.alphas_cumprod, self.alphas_cumprod[1:], strict=False)
        ):
            raise InvalidSetting(
                "alphas_cumprod must fall strictly and stay in (0, 1]; a schedule rescaled to zero terminal SNR "
                "ends at 0 and cannot be inverted: use the network's schedule without rescale_betas_zero_snr"
            )
        _one_of("timestep_spacing", self.timestep_spacing, get_args(TimestepSpacing))
        _one_of("prediction_type", self.prediction_type, get_args(PredictionType))

    @classmethod
    def scaled_linear(cls, beta_start: float, beta_end: float, steps: int = 1000, **settings: Any) -> Self:
        """Betas whose square roots are evenly spaced (Stable Diffusion)."""
        return cls(
            _cumulate(torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float32) ** 2), **settings
        )

    @classmethod
    def linear(cls, beta_start: float, beta_end: float, steps: int = 1000, **settings: Any) -> Self:
        """Evenly spaced betas (DDPM; AnimateDiff's motion modules)."""
        return cls(_cumulate(torch.linspace(beta_start, beta_end, steps, dtype=torch.float32)), **settings)

    @classmethod
    def squaredcos(cls, steps: int = 1000, **settings: Any) -> Self:
        """abar follows a squared cosine, betas are capped at 0.999 (arXiv:2102.09672 Eq. 17; "squaredcos_cap_v2")."""
        abar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        betas = [min(1 - low / high, 0.999) for high, low in itertools.pairwise(abar)]
        return cls(_cumulate(torch.tensor(betas, dtype=torch.float32)), **settings)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """From a diffusers scheduler config (the JSON or `scheduler.config`); absent keys as in DDIMScheduler."""
        if config.get("rescale_betas_zero_snr"):
            raise InvalidSetting(
                "rescale_betas_zero_snr=True is not supported: its last level holds no signal, so nothing can be "
                "inverted there; train or load the network with rescale_betas_zero_snr=False"
            )
        if config.get("trained_betas") is not None:
            raise InvalidSetting("trained_betas is not supported; give beta_schedule, beta_start and beta_end instead")
        beta_schedule = config.get("beta_schedule", "linear")
        betas = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
        make: dict[str, Callable[..., Self]] = {
            "linear": partial(cls.linear, *betas),
            "scaled_linear": partial(cls.scaled_linear, *betas),
            "squaredcos_cap_v2": cls.squaredcos,
        }
        _one_of("beta_schedule", beta_schedule, tuple(make))
        return make[beta_schedule](
            steps=config.get("num_train_timesteps", 1000),
            timestep_spacing=config.get("timestep_spacing", "leading"),
            steps_offset=config.get("steps_offset", 0),
            set_alpha_to_one=config.get("set_alpha_to_one", True),
            prediction_type=config.get("prediction_type", "epsilon"),
        )

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def final_alpha(self) -> float:
        """abar after the last step: 1 (no noise left), or that of timestep 0 as Stable Diffusion's configs say."""
        return 1.0 if self.set_alpha_to_one else self.alphas_cumprod[0]

    def timesteps(self, steps: int, spacing: TimestepSpacing | None = None) -> tuple[int, ...]:
        """The timesteps of a run, noisiest first (arXiv:2305.08891 Table 2; the same integers as diffusers)."""
        count, n = len(self), steps
        if not 1 <= n <= count:
            raise InvalidSetting(f"steps={n} is outside 1..{count}, the timesteps this network was trained with")
        match spacing or self.timestep_spacing:
            case "linspace":
                gap = (count - 1) / max(n - 1, 1)
                ladder = [round(i * gap) for i in reversed(range(n))]
            case "leading":
                ladder = [i * (count // n) + self.steps_offset for i in reversed(range(n))]
            case "trailing":
                gap = count - (count - count / n)  # as numpy.arange rounds it
                ladder = [round(count - i * gap) - 1 for i in range(n)]
        return tuple(min(t, count - 1) for t in ladder)

    def nearest_timestep(self, alpha: float) -> int:
        """The timestep whose noise-to-signal is nearest to that of `alpha`, in log; clamped to this schedule's ends."""
        log_s = [_log_noise_to_signal(a) for a in self.alphas_cumprod]  # rises with t
        target = _log_noise_to_signal(alpha)
        above = bisect.bisect_left(log_s, target)
        near = [t for t in (above - 1, above) if 0 <= t < len(self)]
        return min(near, key=lambda t: abs(log_s[t] - target))


def _log_noise_to_signal(alpha: float) -> float:
    return -math.inf if alpha >= 1 else 0.5 * math.log((1 - alpha) / alpha)


def _cumulate(betas: Tensor) -> tuple[float, ...]:
    return tuple(cast("list[float]", torch.cumprod(1.0 - betas, dim=0).tolist()))  # pyright: ignore[reportUnknownMemberType]


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidSetting(f"{name}={value!r} is not supported; use one of {', '.join(map(repr, allowed))}")
