"""What a zig-zag does to first order, on a 2-D Gaussian mixture whose scores are exact.

With y = x / sqrt(abar), s = noise-to-signal and D the width of one level, going back along eps_N and denoising along
eps_D leaves, to first order in D: delta y = D (sum of eps_N - sum of eps_D), eps_N = u - w d, eps_D = u + w d.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sampler import ImageDenoiser, NoiseSchedule, Plan, VideoDenoiser, fused_plan, mixed_plan, sample
from tests.unit.sampler.networks import texts

SD = NoiseSchedule.scaled_linear(0.00085, 0.012, timestep_spacing="trailing")
T = 599  # a level of the trailing grids of 1000, 500 and 250 steps, with a grid of levels on both sides
POINTS = 64
COMBINATIONS = ("I-I", "V-V", "IV-IV", "IV-VI", "VI-IV", "VI-VI", "II-VV", "VV-II", "II-II", "VV-VV")


class Mixture:
    """The exact epsilon network of isotropic Gaussians; the prompt (text ones) means the first of them alone."""

    def __init__(self, means: list[list[float]], widths: list[float]) -> None:
        self.means, self.widths = torch.tensor(means).double(), torch.tensor(widths).double()

    def __call__(self, x: Tensor, timestep: int, encoder_hidden_states: Tensor) -> Tensor:
        a = SD.alphas_cumprod[timestep]
        prompted = encoder_hidden_states.mean(dim=(1, 2)).bool()
        at = x.flatten(1).double()  # (N, 2)
        away = a**0.5 * self.means - at[:, None]  # (N, K, 2)
        variance = a * self.widths**2 + 1 - a
        log_weights = -(away**2).sum(-1) / (2 * variance) - variance.log()  # (N, K), 2-D densities
        log_weights[prompted, 1:] = -math.inf
        score = (log_weights.softmax(1)[..., None] * away / variance[:, None]).sum(1)
        return (-((1 - a) ** 0.5) * score).view_as(x)


IMAGE = Mixture([[1.5, 0.5], [-1.0, 1.0], [0.5, -1.5]], [0.3, 0.4, 0.5])
VIDEO = Mixture([[1.2, 0.9], [-1.2, -0.4]], [0.5, 0.3])


def start() -> Tensor:
    x = torch.randn(POINTS, 2, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    return SD.alphas_cumprod[T] ** 0.5 * torch.tensor([0.8, 0.4]).view(2, 1, 1, 1) + x


def run(plan: Plan) -> Tensor:
    cond, uncond = texts(POINTS)
    models = {"image": ImageDenoiser(IMAGE, cond, uncond), "video": VideoDenoiser(VIDEO, cond, uncond)}
    return list(sample(start(), plan, **models))[-1].latents


def width(grid: int) -> tuple[int, float]:
    """(index of the level T, distance in s to the next one) of a trailing grid."""
    t = SD.timesteps(grid)
    i = t.index(T)
    s = [math.sqrt(1 / SD.alphas_cumprod[k] - 1) for k in (t[i], t[i + 1])]
    return i, s[0] - s[1]


def law_error(combination: str, order: str, grid: int) -> float:
    """Relative to the displacement that the law predicts."""
    i, d = width(grid)
    scales = {"I": 4.0, "V": 3.0}
    cond, uncond = texts(POINTS)
    u = {k: net(start(), T, uncond) for k, net in (("I", IMAGE), ("V", VIDEO))}
    guide = {k: net(start(), T, cond) - u[k] for k, net in (("I", IMAGE), ("V", VIDEO))}
    back, forth = combination.split("-")
    predicted = d * (sum(u[k] - scales[k] * guide[k] for k in back) - sum(u[k] + scales[k] * guide[k] for k in forth))
    plan = mixed_plan(SD, grid, combination=combination, order=order, image_guidance=(4, 4), video_guidance=(3, 3))  # type: ignore[arg-type]
    moved = (run(Plan((plan.steps[i][:-1],))) - start()) / SD.alphas_cumprod[T] ** 0.5
    return ((moved - predicted).norm() / predicted.norm()).item()


@pytest.mark.parametrize("order", ["denoise_first", "goback_first"])
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_error_of_the_first_order_law_halves_with_the_grid(combination: str, order: str) -> None:
    errors = [law_error(combination, order, grid) for grid in (250, 500, 1000)]
    assert errors[-1] < 0.03
    # Of first order: 2 and 2. The band leaves room for the second order and for float32 latents.
    assert all(1.8 < coarse / fine < 2.2 for coarse, fine in pairwise(errors))


def test_one_fused_step_is_an_iv_iv_step_to_first_order() -> None:
    errors = []
    for grid in (250, 500, 1000):
        i, _ = width(grid)
        ends = [run(Plan((make(SD, grid, guidance=7.5).steps[i],))) for make in (mixed_plan, fused_plan)]
        errors.append(((ends[0] - ends[1]).norm() / (ends[1] - start()).norm()).item())
    assert errors[-1] < 0.03
    assert all(1.8 < coarse / fine < 2.2 for coarse, fine in pairwise(errors))
