"""What the moves compute: closed forms, written-out formulas, and the schedulers of diffusers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from sampler import (
    Move,
    NoiseSchedule,
    Plan,
    Renoise,
    VideoDenoiser,
    ddim_plan,
    fused_plan,
    mixed_plan,
    sample,
    seeded_noise,
)
from tests.unit.sampler.networks import Constant, Smooth, texts
from tests.unit.sampler.plans import SD, SHAPE, last, zigzag

COMBINATIONS = ("I-I", "V-V", "IV-IV", "IV-VI", "VI-IV", "VI-VI", "II-VV", "VV-II", "II-II", "VV-VV")
levels = st.floats(0.005, 0.999)


@given(src=levels, dst=levels)
def test_there_and_back_along_one_epsilon_is_the_identity(src: float, dst: float) -> None:
    plan = Plan(((Move("video", 500, src, dst, 0.0), Move("video", 500, dst, src, 0.0)),))
    x = seeded_noise(SHAPE, 1)
    # float32 rounding, amplified by the noisier level in between
    torch.testing.assert_close(last(x, plan, None, Constant(0.3)), x, atol=1e-4, rtol=1e-4)


@given(i=st.integers(0, 47), steps=st.integers(50, 50))
def test_nested_combinations_are_the_identity_for_any_two_constant_models(i: int, steps: int) -> None:
    x = seeded_noise(SHAPE, 2)
    for combination in ("IV-VI", "VI-IV", "I-I", "V-V"):
        plan = zigzag(mixed_plan(SD, steps, combination=combination, image_guidance=(0, 0), video_guidance=(0, 0)), i)
        torch.testing.assert_close(last(x, plan, Constant(0.7), Constant(-0.4)), x, atol=1e-4, rtol=1e-4)


@given(i=st.integers(0, 47))
def test_iv_iv_leaves_exactly_kappa_times_the_difference_of_two_constant_models(i: int) -> None:
    """delta y = (D1 - D2) (e_V - e_I), y = x / sqrt(abar), D1, D2 the level widths in noise-to-signal."""
    plan = zigzag(mixed_plan(SD, 50, image_guidance=(0, 0), video_guidance=(0, 0)), i)
    a = [plan.steps[0][0].src, plan.steps[0][1].src, plan.steps[0][1].dst]
    s0, s1, s2 = [((1 - v) / v) ** 0.5 for v in a]
    kappa = (s0 - s1) - (s1 - s2)
    x = seeded_noise(SHAPE, 3)
    moved = (last(x, plan, Constant(0.7), Constant(-0.4)) - x) / a[0] ** 0.5
    torch.testing.assert_close(moved, torch.full(SHAPE, kappa * (-0.4 - 0.7)), atol=2e-4, rtol=2e-3)


def test_a_zigzag_injects_both_guidances_and_wrong_signs_inject_none() -> None:
    """To first order: delta y = -D (w_D + w_N) d for each model, d = eps_c - eps_u."""
    plan = zigzag(mixed_plan(SD, 1000, image_guidance=(4, 4), video_guidance=(2, 2)), 500)
    a0, a1 = plan.steps[0][0].src, plan.steps[0][0].dst
    width = ((1 - a0) / a0) ** 0.5 - ((1 - a1) / a1) ** 0.5
    x = seeded_noise(SHAPE, 4)
    moved = (last(x, plan, Constant(0.1, 0.3), Constant(-0.2, 0.3)) - x).mean().item() / a0**0.5
    assert moved == pytest.approx(-width * (8 * 0.2 + 4 * 0.5), rel=0.02)
    unsigned = Plan((tuple(Move(m.model, m.timestep, m.src, m.dst, abs(m.guidance)) for m in plan.steps[0]),))
    assert abs((last(x, unsigned, Constant(0.1, 0.3), Constant(-0.2, 0.3)) - x).mean().item()) < 0.05 * abs(moved)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_ddim_equals_diffusers(spacing: str, prediction_type: str) -> None:
    theirs = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing=spacing,
        prediction_type=prediction_type,
    )
    theirs.set_timesteps(20)
    network, (cond, uncond) = Smooth(0.1, mixing=True), texts()
    x = expected = seeded_noise(SHAPE, 5)
    for t in theirs.timesteps:
        out_u, out_c = (network(expected, int(t), text) for text in (uncond, cond))
        expected = theirs.step(out_u + 7.5 * (out_c - out_u), t, expected).prev_sample
    schedule = NoiseSchedule.from_config(theirs.config)
    video = VideoDenoiser(network, cond, uncond, prediction_type=schedule.prediction_type)
    for step in sample(x, ddim_plan(schedule, 20, guidance=7.5), video=video):
        x = step.latents
    torch.testing.assert_close(x, expected, atol=2e-5, rtol=1e-5)


def test_going_back_equals_diffusers_inverse_scheduler() -> None:
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    theirs = DDIMInverseScheduler(**config, set_alpha_to_one=False)
    theirs.set_timesteps(50)
    network, x = Smooth(0.2), seeded_noise(SHAPE, 6)
    a = SD.alphas_cumprod
    plan = Plan(((Move("video", 480, a[480], a[500], 0.0),),))
    expected = theirs.step(network(x, 480, texts()[1]), 500, x).prev_sample
    torch.testing.assert_close(last(x, plan, None, network), expected, atol=1e-6, rtol=1e-6)


def test_one_mixed_step_equals_the_same_five_moves_written_out() -> None:
    plan = mixed_plan(SD, 50, image_guidance=(4, 4), video_guidance=(3, 3), guidance=7.5)
    image, video, (cond, uncond) = Smooth(0.1), Smooth(0.4, mixing=True), texts()
    t, a = SD.timesteps(50), [SD.alphas_cumprod[t] for t in SD.timesteps(50)]

    def eps(network: Callable[..., Tensor], x: Tensor, level: int, w: float) -> Tensor:
        u, c = (network(x, t[level], text) for text in (uncond, cond))
        return u + w * (c - u)

    def move(x: Tensor, e: Tensor, src: int, dst: int) -> Tensor:
        x0 = (x - (1 - a[src]) ** 0.5 * e) / a[src] ** 0.5
        return a[dst] ** 0.5 * x0 + (1 - a[dst]) ** 0.5 * e

    def frames(x: Tensor, level: int, w: float) -> Tensor:
        return eps(image, x[0].transpose(0, 1), level, w).transpose(0, 1)[None]

    x = start = seeded_noise(SHAPE, 7)
    i = 20
    x = move(x, frames(x, i, 4), i, i + 1)
    x = move(x, eps(video, x, i + 1, 3), i + 1, i + 2)
    x = move(x, frames(x, i + 2, -4), i + 2, i + 1)
    x = move(x, eps(video, x, i + 1, -3), i + 1, i)
    x = move(x, eps(video, x, i, 7.5), i, i + 1)
    torch.testing.assert_close(last(start, Plan((plan.steps[i],)), image, video), x, atol=1e-5, rtol=1e-5)


class Linear:
    """eps_u = k x and eps_c = k (1 + shift) x: every move is a closed-form scaling."""

    def __init__(self, k: float, shift: float) -> None:
        self.k, self.shift = k, shift

    def __call__(self, x: Tensor, timestep: int, encoder_hidden_states: Tensor) -> Tensor:
        text = encoder_hidden_states.mean(dim=(1, 2)).repeat_interleave(len(x) // len(encoder_hidden_states))
        return self.k * (1 + self.shift * text.view(-1, *[1] * (x.ndim - 1))) * x

    def scale(self, src: float, dst: float, w: float) -> float:
        eps = self.k * (1 + w * self.shift)
        return (dst**0.5) * (1 - (1 - src) ** 0.5 * eps) / src**0.5 + (1 - dst) ** 0.5 * eps


@pytest.mark.parametrize("i", [0, 10, 30, 47])
def test_cycle_of_linear_gaussian_models_is_four_closed_form_scalings(i: int) -> None:
    plan = zigzag(mixed_plan(SD, 50, image_guidance=(4, 4), video_guidance=(3, 3)), i)
    image, video, a = Linear(0.7, 0.02), Linear(0.5, -0.03), [SD.alphas_cumprod[t] for t in SD.timesteps(50)]
    expected = (
        image.scale(a[i], a[i + 1], 4)
        * video.scale(a[i + 1], a[i + 2], 3)
        * image.scale(a[i + 2], a[i + 1], -4)
        * video.scale(a[i + 1], a[i], -3)
    )
    x = seeded_noise(SHAPE, 15)
    torch.testing.assert_close(last(x, plan, image, video), expected * x, atol=1e-5, rtol=1e-5)


@given(i=st.integers(2, 47), combination=st.sampled_from(COMBINATIONS))
def test_any_cycle_of_one_constant_model_without_guidance_is_the_identity(i: int, combination: str) -> None:
    x = seeded_noise(SHAPE, 16)
    for order in ("denoise_first", "goback_first"):
        plan = mixed_plan(SD, 50, combination=combination, order=order, image_guidance=(0, 0), video_guidance=(0, 0))
        moved = last(x, zigzag(plan, i), Constant(0.4), Constant(0.4))
        torch.testing.assert_close(moved, x, atol=1e-4, rtol=1e-4)


@given(order=st.permutations(range(3)), w=st.floats(-8, 8), forth=st.booleans())
def test_image_model_never_mixes_frames(order: list[int], w: float, forth: bool) -> None:
    levels = (SD.alphas_cumprod[500], SD.alphas_cumprod[480])
    plan = Plan(((Move("image", 500, *(levels if forth else levels[::-1]), w),),))
    x, network = seeded_noise(SHAPE, 17), Smooth(0.3)
    torch.testing.assert_close(last(x[:, :, order], plan, network, None), last(x, plan, network, None)[:, :, order])


def test_gaussian_noise_goes_back_as_the_forward_process_does() -> None:
    """From x0 = 0.5 at level a to b: mean and deviation of q(x_b | x_0), here of 20000 numbers."""
    a, b = SD.alphas_cumprod[300], SD.alphas_cumprod[400]
    x = a**0.5 * 0.5 + (1 - a) ** 0.5 * seeded_noise((1, 4, 5, 32, 32), 18)
    (step,) = sample(x, Plan(((Renoise(a, b),),)), generator=Generator().manual_seed(19))
    assert step.latents.mean().item() == pytest.approx(b**0.5 * 0.5, abs=0.02)
    assert step.latents.std().item() == pytest.approx((1 - b) ** 0.5, abs=0.02)


def test_fused_step_is_ddim_along_the_written_out_sum() -> None:
    plan = fused_plan(SD, 20, image_guidance=(4, 4), video_guidance=(3, 3), guidance=7.5)
    image, video, (cond, uncond) = Smooth(0.1), Smooth(0.4, mixing=True), texts()
    x, t, (fused,) = seeded_noise(SHAPE, 21), SD.timesteps(20)[5], plan.steps[5]
    u, c = (video(x, t, text) for text in (uncond, cond))
    u_image, c_image = (image(x[0].transpose(0, 1), t, text).transpose(0, 1)[None] for text in (uncond, cond))
    eps = u + (7.5 + 6) * (c - u) + 8 * (c_image - u_image)
    x0 = (x - (1 - fused.src) ** 0.5 * eps) / fused.src**0.5
    expected = fused.dst**0.5 * x0 + (1 - fused.dst) ** 0.5 * eps
    torch.testing.assert_close(last(x, Plan((plan.steps[5],)), image, video), expected, atol=1e-5, rtol=1e-5)
