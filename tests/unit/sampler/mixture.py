"""A network that is exact for a mixture of Gaussians in two dimensions, in whatever form it predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sampler import ImageDenoiser, NoiseSchedule, Plan, VideoDenoiser, sample
from sampler.prediction import PredictionType, input_scale, signal_and_noise

CLIPS = 64
ONES = torch.ones(CLIPS, 1, 1)
NOISE = torch.randn(CLIPS, 2, 1, 1, 1, generator=torch.Generator().manual_seed(0))
MEANS = [[2.0, 0.5], [-1.5, 1.5], [0.5, -2.0]]


class Mixture:
    """(N, 2, 1, 1, 1) or (N, 2, 1, 1) in, the same out. Text ones picks one mixture, text zeros another.

    Args:
        kind: what it predicts.
        levels: (weight of x0, weight of eps) of its input at a timestep; None: those of a flow that is given 1000 s.
        shift: added to the means.
    """

    def __init__(
        self,
        kind: PredictionType,
        levels: Callable[[float], tuple[float, float]] | None = None,
        shift: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.kind: PredictionType = kind
        self.levels = levels or (lambda t: (1 - t / 1000, t / 1000))
        self.means = torch.tensor(MEANS, dtype=torch.float64) + torch.tensor(shift, dtype=torch.float64)
        self.variances = torch.tensor([0.3, 0.2, 0.4], dtype=torch.float64) ** 2
        self.weights = torch.tensor([[1 / 3] * 3, [0.7, 0.2, 0.1]], dtype=torch.float64)
        self.times: list[float] = []

    def __call__(self, x: Tensor, timestep: Any, encoder_hidden_states: Tensor) -> Tensor:
        self.times.append(float(timestep))
        flat, level = x.reshape(len(x), 2).double(), self.levels(float(timestep))
        wanted = encoder_hidden_states[:, 0, 0].round().long()
        both = torch.stack([self.predict(flat, *level, which) for which in (0, 1)])
        return both[wanted, torch.arange(len(x))].reshape(x.shape).float()

    def predict(self, x: Tensor, a: float, b: float, which: int) -> Tensor:
        """(N, 2) at x = a x0 + b eps."""
        variance = a * a * self.variances + b * b
        offset = x[:, None] - a * self.means
        odds = self.weights[which].log() - (offset**2).sum(-1) / (2 * variance) - variance.log()
        share = odds.softmax(1)[..., None]
        eps = (share * (b / variance)[:, None] * offset).sum(1)
        x0 = (share * (self.means + (a * self.variances / variance)[:, None] * offset)).sum(1)
        return {"flow": eps - x0, "epsilon": eps, "v_prediction": a * eps - b * x0}[self.kind]


def of_betas(schedule: NoiseSchedule) -> Callable[[float], tuple[float, float]]:
    """Levels of a network that is given whole timesteps of this schedule."""
    return lambda t: signal_and_noise(schedule.alphas_cumprod[int(t)])


def video(network: Mixture) -> VideoDenoiser:
    return VideoDenoiser(network, ONES, 0 * ONES, prediction_type=network.kind)


def image(network: Mixture, **settings: Any) -> ImageDenoiser:
    return ImageDenoiser(network, ONES, 0 * ONES, prediction_type=network.kind, **settings)


def last(plan: Plan, latents: Tensor = NOISE, **settings: Any) -> Tensor:
    *_, end = sample(latents, plan, **settings)
    return end.latents


def as_flow(latents: Tensor, alpha: float) -> Tensor:
    """(1 - s) x0 + s eps of the same x0 and eps."""
    return latents * input_scale(alpha, "flow")


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def rms(a: Tensor, b: Tensor) -> float:
    return float((a - b).pow(2).mean().sqrt())
