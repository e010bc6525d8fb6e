from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sampler import (
    ImageDenoiser,
    Move,
    NoiseSchedule,
    Plan,
    VideoDenoiser,
    ddim_plan,
    mixed_plan,
    sample,
    seeded_noise,
)
from tests.unit.sampler.networks import Constant, Smooth, texts

SD = NoiseSchedule.scaled_linear(0.00085, 0.012, timestep_spacing="trailing")
SHAPE = (1, 4, 3, 4, 4)


def last(latents: Tensor, plan: Plan, image: object, video: object, **settings: object) -> Tensor:
    cond, uncond = texts(len(latents))
    denoisers = {"image": ImageDenoiser(image, cond, uncond), "video": VideoDenoiser(video, cond, uncond)}
    return list(sample(latents, plan, **denoisers, **settings))[-1].latents  # type: ignore[arg-type]


def zigzag(plan: Plan, i: int) -> Plan:
    return Plan((plan.steps[i][:-1],))


levels = st.floats(0.005, 0.999)


@given(src=levels, dst=levels)
def test_there_and_back_along_one_epsilon_is_the_identity(src: float, dst: float) -> None:
    plan = Plan(((Move("video", 500, src, dst, 0.0), Move("video", 500, dst, src, 0.0)),))
    x = seeded_noise(SHAPE, 1)
    # float32 rounding, enlarged by the way through the noisier level
    torch.testing.assert_close(last(x, plan, None, Constant(0.3)), x, atol=1e-4, rtol=1e-4)


@given(i=st.integers(0, 47), steps=st.integers(50, 50))
def test_nested_combinations_are_the_identity_for_any_two_constant_models(i: int, steps: int) -> None:
    x = seeded_noise(SHAPE, 2)
    for combination in ("IV-VI", "VI-IV", "I-I", "V-V"):
        plan = zigzag(mixed_plan(SD, steps, combination=combination, image_guidance=(0, 0), video_guidance=(0, 0)), i)
        torch.testing.assert_close(last(x, plan, Constant(0.7), Constant(-0.4)), x, atol=1e-4, rtol=1e-4)


@given(i=st.integers(0, 47))
def test_iv_iv_leaves_exactly_kappa_times_the_difference_of_two_constant_models(i: int) -> None:
    """Algorithm reference 2.3: delta y = (D1 - D2) (e_V - e_I), y = x / sqrt(abar), D the steps in noise-to-signal."""
    plan = zigzag(mixed_plan(SD, 50, image_guidance=(0, 0), video_guidance=(0, 0)), i)
    a = [plan.steps[0][0].src, plan.steps[0][1].src, plan.steps[0][1].dst]
    s0, s1, s2 = [((1 - v) / v) ** 0.5 for v in a]
    kappa = (s0 - s1) - (s1 - s2)
    x = seeded_noise(SHAPE, 3)
    moved = (last(x, plan, Constant(0.7), Constant(-0.4)) - x) / a[0] ** 0.5
    torch.testing.assert_close(moved, torch.full(SHAPE, kappa * (-0.4 - 0.7)), atol=2e-4, rtol=2e-3)


def test_a_zigzag_injects_both_guidances_and_wrong_signs_inject_none() -> None:
    """Algorithm reference 2.3 to first order: delta y = -D (w_D + w_N) d for each model, d = eps_c - eps_u."""
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


def test_image_model_never_mixes_frames() -> None:
    a = SD.alphas_cumprod
    plan = Plan(((Move("image", 500, a[500], a[480], 4.0), Move("image", 480, a[480], a[500], -4.0)),))
    x, order = seeded_noise(SHAPE, 8), torch.tensor([2, 0, 1])
    network = Smooth(0.3)
    permuted = last(x[:, :, order], plan, network, None)
    assert torch.equal(permuted, last(x, plan, network, None)[:, :, order])


@settings(deadline=None, max_examples=10)
@given(seeds=st.lists(st.integers(0, 2**31), min_size=2, max_size=3))
def test_a_batch_equals_its_clips_run_alone(seeds: list[int]) -> None:
    plan, networks = mixed_plan(SD, 6), (Smooth(0.1), Smooth(0.4, mixing=True))
    together = last(seeded_noise((len(seeds), *SHAPE[1:]), seeds), plan, *networks)
    alone = torch.cat([last(seeded_noise(SHAPE, [seed]), plan, *networks) for seed in seeds])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_networks_are_called_as_often_as_the_plan_says() -> None:
    image, video = Constant(0.1), Constant(0.2)
    plan = mixed_plan(SD, 12, interval=(0.25, 0.75))
    last(seeded_noise(SHAPE, 9), plan, image, video)
    assert {"image": len(image.calls), "video": len(video.calls)} == plan.calls
    assert {shape for shape, _ in image.calls} == {(6, 4, 4, 4)}  # two guidance halves of three frames
    assert {shape for shape, _ in video.calls} == {(2, 4, 3, 4, 4)}


def test_run_resumed_at_any_step_ends_in_the_same_bytes() -> None:
    cond, uncond = texts()
    models = {"image": ImageDenoiser(Smooth(0.1), cond, uncond), "video": VideoDenoiser(Smooth(0.4), cond, uncond)}
    plan = mixed_plan(SD, 5)
    steps = list(sample(seeded_noise(SHAPE, 10), plan, **models))
    assert [(s.index, s.total) for s in steps] == [(i, 5) for i in range(5)]
    for before, after in pairwise(steps):
        again = next(iter(sample(before.latents, plan, **models, start=after.index)))
        assert torch.equal(again.latents, after.latents)


def test_stopping_the_iteration_stops_the_work_and_grad_mode_is_left_alone() -> None:
    cond, uncond = texts()
    network = Constant(0.1)
    run = sample(seeded_noise(SHAPE, 11), ddim_plan(SD, 10), video=VideoDenoiser(network, cond, uncond))
    next(run)
    assert torch.is_grad_enabled()
    assert len(network.calls) == 1


def test_missing_model_is_said_before_any_work() -> None:
    with pytest.raises(ValueError, match=r"calls the image model .* times: pass image="):
        sample(seeded_noise(SHAPE, 12), mixed_plan(SD, 10), video=VideoDenoiser(Constant(0.0), *texts()))


def test_start_outside_the_plan_is_refused() -> None:
    with pytest.raises(ValueError, match=r"start=11 is outside 0\.\.10"):
        sample(seeded_noise(SHAPE, 13), ddim_plan(SD, 10), video=VideoDenoiser(Constant(0.0), *texts()), start=11)
