"""Other rules than classifier-free guidance for the two answers of a network: APG and CFG-Zero*.

Both are written in the space in which their papers define them, and give the prediction that means the same. Every
prediction p of a network for latents x, see `sampler.prediction`, is also
    the clean clip  x0         (what the APG paper's denoiser D predicts)
    the velocity    eps - x0   (what a rectified flow predicts)
both of the form x / divisor + weight p. So networks that predict epsilon or v can use CFG-Zero*, which is defined for
flow models. diffusers' guiders apply both rules to whatever the network predicts.

A sample is what the network sees as one: the whole clip for the video model, each frame for the image model.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sampler.errors import InvalidSetting
from sampler.prediction import PredictionType, clean_weights, velocity_weights
from sampler.validation import finite_number, whole_number

MOMENTUM = "momentum"  # of APG, in the memory of a run
_LEAST = 1e-8  # added to |u_u|^2, as in diffusers


@dataclass(frozen=True)
class AdaptiveProjectedGuidance:
    """APG (arXiv:2410.02416): guidance without its part along the prompt's own prediction, which oversaturates.

        d_t = D(prompt) - D(negative prompt) + momentum * d_(t+1)
        d = d_t min(1, norm_threshold / |d_t|),  d_par = <d, D(prompt)> / |D(prompt)|^2 D(prompt)
        x0 = D(prompt) + (scale - 1) (d - d_par + eta d_par)

    eta 1, no threshold and no momentum are classifier-free guidance.

    Args:
        eta: share of the parallel part that stays.
        norm_threshold: greatest length of the update of one frame, at least 0; 0: no limit. For a clip of F frames,
            which the video model sees as one sample, it is that times sqrt(F): its frames' root mean square.
        momentum: weight of the updates of the steps before, in (-1, 1); the paper's are negative.

    Raises:
        InvalidSetting: names the parameter, its value and what is allowed.
    """

    eta: float = 0.0
    norm_threshold: float = 15.0
    momentum: float = -0.5

    def __post_init__(self) -> None:
        finite_number("eta", self.eta)
        if finite_number("norm_threshold", self.norm_threshold) < 0:
            raise InvalidSetting(f"norm_threshold={self.norm_threshold!r} must be at least 0 (0: no limit)")
        if not -1 < finite_number("momentum", self.momentum) < 1:
            raise InvalidSetting(f"momentum={self.momentum!r} must be in (-1, 1); the updates add up without end else")


@dataclass(frozen=True)
class CfgZeroStar:
    """CFG-Zero* (arXiv:2503.18886): guidance from the negative prompt's velocity at its best length.

        u = s u_u + scale (u_c - s u_u),  s = <u_c, u_u> / |u_u|^2

    Args:
        zero_init_steps: so many steps at the start of a run have velocity 0 and call no network, see `ZeroVelocity`.
            The paper gives 4 % of the steps, at least one.

    Raises:
        InvalidSetting: names the parameter, its value and what is allowed.
    """

    zero_init_steps: int = 1

    def __post_init__(self) -> None:
        if self.zero_init_steps != 0:
            whole_number("zero_init_steps", self.zero_init_steps, " (or 0: none)")


GuidanceRule = AdaptiveProjectedGuidance | CfgZeroStar


@dataclass(frozen=True)
class RuledScale:
    """A guidance scale, and the rule that it is the scale of."""

    scale: float
    rule: GuidanceRule

    @property
    def uses_momentum(self) -> bool:
        return isinstance(self.rule, AdaptiveProjectedGuidance) and self.rule.momentum != 0


Scale = float | RuledScale  # a number is a scale of classifier-free guidance


def with_rule(scale: float, rule: GuidanceRule | None) -> Scale:
    """At scale 1 every rule is the prompt alone, and so is plain guidance, which needs one answer only for it."""
    return scale if rule is None or scale == 1 else RuledScale(scale, rule)


def number_of(scale: Scale) -> float:
    return scale.scale if isinstance(scale, RuledScale) else scale


def guided_prediction(
    guidance: RuledScale,
    latents: Tensor,
    uncond: Tensor,
    cond: Tensor,
    alpha: float,
    prediction_type: PredictionType = "epsilon",
    *,
    by_frame: bool,
    memory: MutableMapping[str, Tensor],
) -> Tensor:
    """One prediction from both answers of one network.

    Args:
        guidance: scale and rule.
        latents: variance-preserving latents (B, C, F, h, w) that the network was called for.
        uncond, cond: its predictions for the negative prompt and the prompt, of the same shape.
        alpha, prediction_type: noise level of the latents, abar in [0, 1], and what the network predicts.
        by_frame: whether each frame is a separate sample, as it is for the image model.
        memory: of the run; APG's momentum reads and writes it.

    Raises:
        InvalidSetting: epsilon at pure noise.
    """
    dims = (1, 3, 4) if by_frame else (1, 2, 3, 4)
    if isinstance(guidance.rule, CfgZeroStar):
        return _cfg_zero_star(guidance.scale, latents, uncond, cond, velocity_weights(alpha, prediction_type), dims)
    rule, (divisor, weight) = guidance.rule, clean_weights(alpha, prediction_type)
    if weight == 0:  # nothing is noise, so nothing can be guided
        return cond
    clean, update = latents / divisor + weight * cond, weight * (cond - uncond)
    if rule.momentum:
        if (before := memory.get(MOMENTUM)) is not None:
            update = update + rule.momentum * before
        memory[MOMENTUM] = update
    if rule.norm_threshold:
        most = rule.norm_threshold * (1 if by_frame else latents.shape[2] ** 0.5)
        update = update * torch.clamp(most / _dot(update, update, dims).sqrt(), max=1).float()
    along = (_dot(update, clean, dims) / _dot(clean, clean, dims)).float() * clean
    return cond + (guidance.scale - 1) / weight * (update - (1 - rule.eta) * along)


def _cfg_zero_star(
    scale: float, latents: Tensor, uncond: Tensor, cond: Tensor, weights: tuple[float, float], dims: tuple[int, ...]
) -> Tensor:
    divisor, weight = weights
    visible = latents / divisor
    u_cond, u_uncond = (weight * p - visible for p in (cond, uncond))
    best = _dot(u_cond, u_uncond, dims) / (_dot(u_uncond, u_uncond, dims) + _LEAST)
    scaled = best.float() * u_uncond
    return (scaled + scale * (u_cond - scaled) + visible) / weight


def _dot(a: Tensor, b: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Inner products in float64 over these axes, which stay with length 1."""
    return (a.double() * b.double()).sum(dims, keepdim=True)
