"""What networks predict: epsilon, v, or the velocity of a flow; one formula moves latents along any of them.

Latents are variance-preserving for every family: x = a x0 + b eps with a = sqrt(abar), b = sqrt(1 - abar). A network
returns p = g x0 + d eps:

    epsilon       g = 0,  d = 1                                (arXiv:2006.11239)
    v_prediction  g = -b, d = a                                (arXiv:2202.00512 App. D)
    flow          g = -1, d = 1, the velocity eps - x0         (arXiv:2210.02747, 2209.03003)

x and p are two linear equations in x0 and eps with determinant a d - b g, so both follow from every network:

    x0 = (d x - b p) / (a d - b g),    eps = (a p - g x) / (a d - b g)

The determinant is a, 1 and a + b. Only epsilon's vanishes, at pure noise (a = 0), where epsilon says nothing of x0.

A rectified flow writes its latents as z = (1 - s) x0 + s eps. That is x / (a + b) at the level of equal signal-to-noise
ratio, s = b / (a + b); so a flow network sees x / (a + b), and z' = z + (s' - s) p is the same move as `along`.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from sampler.errors import InvalidSetting

PredictionType = Literal["epsilon", "v_prediction", "flow"]


def signal_and_noise(alpha: float) -> tuple[float, float]:
    """(a, b) of x = a x0 + b eps at abar `alpha` in [0, 1]."""
    return alpha**0.5, (1 - alpha) ** 0.5


def alpha_at(s: float) -> float:
    """abar of the signal-to-noise ratio of flow level `s` in [0, 1]; 0 at s = 1, pure noise."""
    return (1 - s) ** 2 / ((1 - s) ** 2 + s**2)


def flow_level(alpha: float) -> float:
    """The flow level s in [0, 1] of the signal-to-noise ratio of abar `alpha`: the inverse of `alpha_at`."""
    a, b = signal_and_noise(alpha)
    return b / (a + b)


def input_scale(alpha: float, prediction: PredictionType) -> float:
    """What latents are multiplied by for the network: 1, or 1 / (a + b) for a flow's."""
    return 1 / sum(signal_and_noise(alpha)) if prediction == "flow" else 1.0


def along(src: float, dst: float, prediction: PredictionType) -> tuple[float, float]:
    """The deterministic move between two levels, x' = a' x0 + b' eps, as (weight of x, weight of p).

        x' = ((a' d - b' g) x + (b' a - a' b) p) / (a d - b g)

    For epsilon and v it is DDIM (arXiv:2010.02502 Eq. 12 with eta = 0), for flow a step of Euler.

    Args:
        src, dst: abar before and after, in [0, 1].
        prediction: what p is.

    Raises:
        InvalidSetting: epsilon at pure noise, `src` = 0.
    """
    if src == dst:
        return 1.0, 0.0
    (a, b), (a_dst, b_dst) = signal_and_noise(src), signal_and_noise(dst)
    if prediction == "epsilon":
        _check_signal(src)
        x = (dst / src) ** 0.5  # a' / a, rounded as in version 0.1, so that its runs keep their bytes
        return x, b_dst - x * b
    g, d = _parts(a, b, prediction)
    determinant = a * d - b * g
    return (a_dst * d - b_dst * g) / determinant, (b_dst * a - a_dst * b) / determinant


def clean_weights(alpha: float, prediction: PredictionType) -> tuple[float, float]:
    """x0 = x / first + second * p. `first` may be infinite.

    Raises:
        InvalidSetting: epsilon at pure noise.
    """
    a, b = signal_and_noise(alpha)
    if prediction == "epsilon":
        _check_signal(alpha)
        return a, -(((1 - alpha) / alpha) ** 0.5)
    g, d = _parts(a, b, prediction)
    determinant = a * d - b * g
    return determinant / d if d else math.inf, -b / determinant


def velocity_weights(alpha: float, prediction: PredictionType) -> tuple[float, float]:
    """eps - x0 = second * p - x / first. `first` may be infinite.

    Raises:
        InvalidSetting: epsilon at pure noise.
    """
    a, b = signal_and_noise(alpha)
    if prediction == "epsilon":
        _check_signal(alpha)
        return a, 1 + ((1 - alpha) / alpha) ** 0.5
    g, d = _parts(a, b, prediction)
    determinant = a * d - b * g
    return determinant / (g + d) if g + d else math.inf, (a + b) / determinant


def clean(x: Tensor, p: Tensor, alpha: float, prediction: PredictionType) -> Tensor:
    """x0 = (d x - b p) / (a d - b g), of the shape of x. Raises InvalidSetting for epsilon at pure noise."""
    a, b = signal_and_noise(alpha)
    if prediction == "epsilon":
        _check_signal(alpha)
    g, d = _parts(a, b, prediction)
    determinant = a * d - b * g
    return (x - b * p) / determinant if d == 1 else (d * x - b * p) / determinant


def converted(
    p: Tensor, x: Tensor, alpha: float, source: PredictionType, target: PredictionType, uncond: float = 1.0
) -> Tensor:
    """What a network of type `target` would have predicted.

    Args:
        p: the prediction of type `source` for latents `x`, of the same shape.
        alpha: noise level of the latents, abar in [0, 1].
        uncond: weight of the unconditional part in p; with weight 0, p is a difference of predictions, and stays one.

    Raises:
        InvalidSetting: epsilon at pure noise.
    """
    if source == target:
        return p
    if source == "epsilon":
        _check_signal(alpha)
    a, b = signal_and_noise(alpha)
    (g, d), (g_target, d_target) = _parts(a, b, source), _parts(a, b, target)
    determinant = a * d - b * g
    of_p = (a * d_target - b * g_target) / determinant
    of_x = uncond * (g_target * d - d_target * g) / determinant
    return of_p * p + of_x * x if of_x else of_p * p


def _parts(a: float, b: float, prediction: PredictionType) -> tuple[float, float]:
    """(g, d) of p = g x0 + d eps."""
    match prediction:
        case "epsilon":
            return 0.0, 1.0
        case "v_prediction":
            return -b, a
        case "flow":
            return -1.0, 1.0


def _check_signal(alpha: float) -> None:
    if alpha <= 0:
        raise InvalidSetting(
            f"abar={alpha!r} is pure noise, where a network that predicts epsilon says nothing of the clip; call it at "
            "cleaner levels only, or use a network that predicts v or flow"
        )
