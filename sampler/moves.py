"""The kinds of moves a plan is made of: which networks to call, and the weights that carry x on. Data, no tensors.

Letters: abar = cumulative alpha, x = sqrt(abar) x0 + sqrt(1 - abar) eps. Coefficients are float64, made before the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from sampler.errors import InvalidSetting

ModelName = Literal["image", "video"]
LowPass = Literal["butterworth", "gaussian", "ideal"]


@dataclass(frozen=True)
class Call:
    """One network call, uncond * eps_u + guidance * (eps_c - eps_u), for latents at noise level `alpha`."""

    model: ModelName
    timestep: int
    alpha: float
    guidance: float
    uncond: float = 1.0


@dataclass(frozen=True)
class Coefficients:
    """x' = x * x + eps * (sum of the calls) + x0 * (the x0 of the solver step before) + noise * z, z ~ N(0, 1)."""

    x: float
    eps: float = 0.0
    x0: float = 0.0
    noise: float = 0.0


class _Linear:
    """A move that weighs x, epsilon, an earlier x0 and noise; subclasses say which networks and which weights."""

    draws_by_frame: ClassVar[bool] = False  # noise as (B*F, C, h, w) rather than (B, C, F, h, w)
    leaves_x0: ClassVar[bool] = False  # whether a later move may weigh this move's x0

    @property
    def networks(self) -> tuple[Call, ...]:
        """The calls as the algorithm writes them."""
        return ()

    @cached_property  # `sample` asks for the calls of the whole plan first, so all weights are there before the loop
    def coefficients(self) -> Coefficients:
        raise NotImplementedError

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """The calls that are made: none where epsilon has no weight."""
        return self.networks if self.coefficients.eps else ()

    @cached_property
    def is_free(self) -> bool:
        """Whether nothing changes, so that no network need be called."""
        return self.coefficients == Coefficients(1.0)


@dataclass(frozen=True)
class Move(_Linear):
    """Evaluate `model` at `timestep` and carry x from noise level `src` to `dst` (cumulative alphas).

    eps = eps_uncond + guidance * (eps_cond - eps_uncond); a go-back move carries a negative guidance. Towards less
    noise this is DDIM with eta = 0 (arXiv:2010.02502 Eq. 12), towards more noise the same formula is DDIM inversion.
    """

    model: ModelName
    timestep: int
    src: float
    dst: float
    guidance: float

    @property
    def networks(self) -> tuple[Call, ...]:
        return (Call(self.model, self.timestep, self.src, self.guidance),)

    @cached_property
    def coefficients(self) -> Coefficients:
        return _along_epsilon(self.src, self.dst)


@dataclass(frozen=True)
class FusedMove(_Linear):
    """Like Move, along the sum of several calls at the same x; one of them has the whole unconditional part."""

    parts: tuple[Call, ...]
    src: float
    dst: float

    @property
    def networks(self) -> tuple[Call, ...]:
        return self.parts

    @cached_property
    def coefficients(self) -> Coefficients:
        return _along_epsilon(self.src, self.dst)


@dataclass(frozen=True)
class Renoise(_Linear):
    """Go back from `src` to the noisier `dst` by Gaussian noise, the forward process itself: no network call.

    Raises InvalidSetting if `dst` is less noisy.
    """

    src: float
    dst: float

    def __post_init__(self) -> None:
        if not 0 < self.dst <= self.src:
            raise InvalidSetting(
                f"noise cannot lead from src={self.src} to dst={self.dst}: dst must be the noisier level"
            )

    @cached_property
    def coefficients(self) -> Coefficients:
        ratio = self.dst / self.src
        return Coefficients(ratio**0.5, noise=(1 - ratio) ** 0.5)


@dataclass(frozen=True)
class SolverMove(_Linear):
    """One step of SDE-DPM-Solver++ (arXiv:2211.01095 App. F, as diffusers' "sde-dpmsolver++" with "midpoint").

    before: noise level of the solver step whose x0 is the second point (2M); None for a first-order step.
    """

    model: ModelName
    timestep: int
    src: float
    dst: float
    guidance: float
    before: float | None = None

    draws_by_frame: ClassVar[bool] = True  # diffusers hands its scheduler frames as a batch
    leaves_x0: ClassVar[bool] = True

    @property
    def networks(self) -> tuple[Call, ...]:
        return (Call(self.model, self.timestep, self.src, self.guidance),)

    @cached_property
    def coefficients(self) -> Coefficients:
        # lambda = log(1 / s) is half the log signal-to-noise, h = lambda_dst - lambda_src; r = exp(-h).
        s, s_dst = noise_to_signal(self.src), noise_to_signal(self.dst)
        r = s_dst / s
        now = self.dst**0.5 * (1 - r * r)  # weight of x0, before the second point takes a share
        earlier = 0.0
        if self.before is not None:
            h, h_before = -math.log(r), math.log(noise_to_signal(self.before) / s)
            earlier = -0.5 * now * h / h_before
        now -= earlier
        stay = ((1 - self.dst) / (1 - self.src)) ** 0.5 * r
        return Coefficients(  # x0 = (x - sqrt(1 - src) eps) / sqrt(src), written out
            x=stay + now / self.src**0.5,
            eps=-now * s,
            x0=earlier,
            noise=((1 - self.dst) * (1 - r * r)) ** 0.5,
        )


@dataclass(frozen=True)
class Restart:
    """FreeInit (arXiv:2312.07537): from a finished clip to new start noise, without a network call.

    The clip is taken back to level `dst` with the noise the run began with; of that the low frequencies are kept, the
    high ones come from fresh noise. Cutoffs are fractions of the Nyquist frequency; `order` is Butterworth's.
    """

    dst: float
    method: LowPass
    order: int
    spatial_cutoff: float
    temporal_cutoff: float

    calls: ClassVar[tuple[Call, ...]] = ()
    networks: ClassVar[tuple[Call, ...]] = ()
    is_free: ClassVar[bool] = False


AnyMove = Move | FusedMove | Renoise | SolverMove | Restart


def noise_to_signal(alpha: float) -> float:
    return ((1 - alpha) / alpha) ** 0.5


def _along_epsilon(src: float, dst: float) -> Coefficients:
    if src == dst:
        return Coefficients(1.0)
    a = (dst / src) ** 0.5
    return Coefficients(a, eps=(1 - dst) ** 0.5 - a * (1 - src) ** 0.5)
