"""The kinds of moves a plan consists of: which networks to call, and the coefficients of the update. No tensors.

Notation: abar = cumulative alpha product, x = sqrt(abar) x0 + sqrt(1 - abar) eps, p = what a network predicts: epsilon,
v or flow, see `sampler.prediction`. Coefficients are float64. The fields of the moves are part of every checkpoint's
fingerprint through `repr`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from sampler.errors import InvalidSetting
from sampler.guidance_rules import Scale
from sampler.prediction import PredictionType, along, clean_weights

ModelName = Literal["image", "video"]
LowPass = Literal["butterworth", "gaussian", "ideal"]


@dataclass(frozen=True)
class Call:
    """One network call: uncond * p_u + guidance * (p_c - p_u).

    Args:
        model: which of the two models.
        timestep: the timestep of that model's own schedule.
        alpha: noise level of the latents, abar in [0, 1].
        guidance: classifier-free guidance scale, any finite number; or a scale with another rule, which then takes the
            place of that sum.
        uncond: weight of the unconditional prediction.
    """

    model: ModelName
    timestep: float
    alpha: float
    guidance: Scale
    uncond: float = 1.0


@dataclass(frozen=True)
class Coefficients:
    """x' = x * x + p * (sum of the calls) + x0 * (x0 of the previous solver step) + noise * z, z ~ N(0, 1)."""

    x: float
    p: float = 0.0
    x0: float = 0.0
    noise: float = 0.0


class _LinearMove:
    """A move whose result is a weighted sum; subclasses give the network calls and the coefficients."""

    draws_by_frame: ClassVar[bool] = False  # noise is drawn as (B*F, C, h, w) rather than (B, C, F, h, w)
    src: float
    dst: float

    @property
    def networks(self) -> tuple[Call, ...]:
        """The calls as the algorithm states them."""
        return ()

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """The calls that are made: none if the coefficient of p is 0."""
        return () if self.is_free else self.networks

    @property
    def is_free(self) -> bool:
        """Whether the move changes nothing and can be skipped."""
        return self.src == self.dst

    @property
    def coefficients(self) -> Coefficients:
        """Those for networks that predict epsilon. Raises InvalidSetting at pure noise, `src` = 0."""
        return self.coefficients_of("epsilon")

    def coefficients_of(self, prediction: PredictionType) -> Coefficients:
        """Those for networks that predict this; computed once.

        Raises:
            InvalidSetting: epsilon at pure noise, `src` = 0.
        """
        known = self._computed.get(prediction)
        if known is None:
            known = self._computed[prediction] = self._coefficients(prediction)
        return known

    @cached_property
    def _computed(self) -> dict[PredictionType, Coefficients]:
        return {}

    def _coefficients(self, prediction: PredictionType, /) -> Coefficients:
        raise NotImplementedError


@dataclass(frozen=True)
class _OneCallMove(_LinearMove):
    model: ModelName
    timestep: float
    src: float
    dst: float
    guidance: Scale

    @property
    def networks(self) -> tuple[Call, ...]:
        return (Call(self.model, self.timestep, self.src, self.guidance),)


@dataclass(frozen=True)
class Move(_OneCallMove):
    """Deterministic move of one model: denoising if `dst` is less noisy than `src`, inversion if it is noisier.

    x' = sqrt(dst) x0 + sqrt(1 - dst) eps with the x0 and eps that p means at `src`, in both directions: DDIM for
    epsilon and v, Euler for flow, see `sampler.prediction.along`. p = p_u + guidance * (p_c - p_u).

    Args:
        model, timestep: what is called.
        src, dst: abar before and after, in [0, 1].
        guidance: classifier-free guidance scale, negative for the go-back moves of the paper; or one with another rule.
    """

    def _coefficients(self, prediction: PredictionType, /) -> Coefficients:
        return Coefficients(*along(self.src, self.dst, prediction))


@dataclass(frozen=True)
class FusedMove(_LinearMove):
    """Move like `Move` along the sum of several calls at the same x.

    Args:
        parts: the calls; their `uncond` weights sum to 1.
        src, dst: abar before and after, in [0, 1].
    """

    parts: tuple[Call, ...]
    src: float
    dst: float

    @property
    def networks(self) -> tuple[Call, ...]:
        return self.parts

    def _coefficients(self, prediction: PredictionType, /) -> Coefficients:
        return Coefficients(*along(self.src, self.dst, prediction))


@dataclass(frozen=True)
class Renoise(_LinearMove):
    """Go-back move "R" of the paper: the forward process, x' = sqrt(dst / src) x + sqrt(1 - dst / src) z.

    Makes no network call and draws z ~ N(0, 1) from the run's generator (arXiv:2006.11239 Eq. 2).

    Args:
        src, dst: abar before and after, 0 <= dst <= src and 0 < src.

    Raises:
        InvalidSetting: `dst` is less noisy than `src`.
    """

    src: float
    dst: float

    def __post_init__(self) -> None:
        if not 0 <= self.dst <= self.src or self.src == 0:
            raise InvalidSetting(f"Renoise from src={self.src} to dst={self.dst}: dst must be the noisier level")

    def _coefficients(self, _prediction: PredictionType, /) -> Coefficients:
        ratio = self.dst / self.src
        return Coefficients(ratio**0.5, noise=(1 - ratio) ** 0.5)


@dataclass(frozen=True)
class ZeroVelocity(_LinearMove):
    """A step along velocity 0 (CFG-Zero*'s zero-init, arXiv:2503.18886); makes no network call and draws no noise.

    In the coordinates of a flow, z = x / (sqrt(abar) + sqrt(1 - abar)), the latents stay where they are.

    Args:
        src, dst: abar before and after, in [0, 1].
    """

    src: float
    dst: float

    def _coefficients(self, _prediction: PredictionType, /) -> Coefficients:
        before, after = (alpha**0.5 + (1 - alpha) ** 0.5 for alpha in (self.src, self.dst))
        return Coefficients(after / before)


@dataclass(frozen=True)
class SecondOrderMove(_OneCallMove):
    """One step of a second-order multistep solver, which also uses the x0 of the step before (2M, "midpoint").

    Args:
        model, timestep, src, dst, guidance: as in `Move`; `dst` is less noisy than `src`.
        before: abar of the previous solver step, whose x0 is the second point. None: a first-order step.
    """

    before: float | None = None

    is_stochastic: ClassVar[bool]

    def _coefficients(self, prediction: PredictionType, /) -> Coefficients:
        # lambda = log(1 / s) is half the log signal-to-noise ratio, h = lambda_dst - lambda_src, r = exp(-h).
        s, s_dst = _noise_to_signal(self.src), _noise_to_signal(self.dst)
        r = s_dst / s
        decay = r * r if self.is_stochastic else r
        current = self.dst**0.5 * (1 - decay)  # coefficient of this step's x0 at first order
        previous = 0.0
        if self.before not in (None, self.src):  # equal: two timesteps of the run are the same
            h, h_before = -math.log(r), math.log(_noise_to_signal(self.before) / s)  # infinite after pure noise
            previous = -0.5 * current * h / h_before
        current -= previous
        x = ((1 - self.dst) / (1 - self.src)) ** 0.5 * (r if self.is_stochastic else 1.0)
        divisor, weight = clean_weights(self.src, prediction)
        return Coefficients(
            x=x + current / divisor,
            p=current * weight,
            x0=previous,
            noise=((1 - self.dst) * (1 - decay)) ** 0.5 if self.is_stochastic else 0.0,
        )


@dataclass(frozen=True)
class MultistepMove(SecondOrderMove):
    """One step of DPM-Solver++ 2M (arXiv:2211.01095 Alg. 2; diffusers' "dpmsolver++" with "midpoint").

    Of first order it is DDIM. Args as in `SecondOrderMove`.
    """

    is_stochastic: ClassVar[bool] = False


@dataclass(frozen=True)
class SolverMove(SecondOrderMove):
    """One step of SDE-DPM-Solver++ 2M (arXiv:2211.01095 App. F; diffusers' "sde-dpmsolver++" with "midpoint").

    Args as in `SecondOrderMove`.
    """

    is_stochastic: ClassVar[bool] = True
    draws_by_frame: ClassVar[bool] = True  # diffusers gives its scheduler frames as a batch


@dataclass(frozen=True)
class ResizingMove(_OneCallMove):
    """The last step before the latents change their size: x' = sqrt(dst) S(x0) + sqrt(1 - dst) z, z ~ N(0, 1).

    x0 is what the model predicts, S resizes it (see `resized`). Noise cannot be resized without changing its level, so
    the new latents get fresh noise of the run's generator. In `coefficients`, x0 is that of this move, resized.

    Args:
        model, timestep, src, guidance: as in `Move`.
        dst: abar after; at 1 no noise is drawn.
        factor: of height and width.
    """

    factor: float

    @property
    def is_free(self) -> bool:
        return False

    def _coefficients(self, _prediction: PredictionType, /) -> Coefficients:
        return Coefficients(0.0, x0=self.dst**0.5, noise=(1 - self.dst) ** 0.5)


@dataclass(frozen=True)
class ConsistencyMove(_OneCallMove):
    """One step of multistep consistency sampling, for networks distilled to answer with x0 (arXiv:2310.04378 Alg. 3).

    x' = sqrt(dst) (c_skip x + c_out x0) + sqrt(1 - dst) z with z ~ N(0, 1), c_skip = sigma^2 / (u^2 + sigma^2),
    c_out = u / sqrt(u^2 + sigma^2), u = 10 timestep, sigma = 0.5: diffusers' LCMScheduler, and the coefficients that
    latent consistency models were distilled with.

    Args:
        model, timestep, src, guidance: as in `Move`.
        dst: abar after; 1 at the end of the run, where no noise is added.
    """

    SIGMA_DATA: ClassVar[float] = 0.5
    TIMESTEP_SCALING: ClassVar[float] = 10.0

    def _coefficients(self, prediction: PredictionType, /) -> Coefficients:
        u, variance = self.timestep * self.TIMESTEP_SCALING, self.SIGMA_DATA**2
        skip, out = variance / (u**2 + variance), u / (u**2 + variance) ** 0.5
        scale, (divisor, weight) = self.dst**0.5, clean_weights(self.src, prediction)
        return Coefficients(x=scale * (skip + out / divisor), p=scale * out * weight, noise=(1 - self.dst) ** 0.5)


@dataclass(frozen=True)
class Restart:
    """FreeInit (arXiv:2312.07537): new start noise from a finished clip; makes no network call.

    The clip is noised to level `dst` with the run's initial noise. Its low frequencies are kept; the high frequencies
    come from fresh noise of the run's generator.

    Args:
        dst: abar of the start of a run.
        method: shape of the low-pass filter.
        order: order of the Butterworth filter; ignored by the others.
        spatial_cutoff, temporal_cutoff: fractions of the Nyquist frequency, in (0, 1].
    """

    dst: float
    method: LowPass
    order: int
    spatial_cutoff: float
    temporal_cutoff: float

    calls: ClassVar[tuple[Call, ...]] = ()
    networks: ClassVar[tuple[Call, ...]] = ()
    is_free: ClassVar[bool] = False


AnyMove = (
    Move | FusedMove | Renoise | ZeroVelocity | MultistepMove | SolverMove | ConsistencyMove | ResizingMove | Restart
)


def _noise_to_signal(alpha: float) -> float:
    return ((1 - alpha) / alpha) ** 0.5 if alpha else math.inf
