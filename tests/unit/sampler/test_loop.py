"""The loop over a plan: batches, calls, resuming, and what it refuses."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from sampler import (
    ImageDenoiser,
    IncompatibleInputs,
    InvalidSetting,
    LatentsNotFinite,
    VideoDenoiser,
    ddim_plan,
    mixed_plan,
    sample,
    seeded_noise,
)
from sampler.resizing import resized
from tests.unit.sampler.networks import Constant, Smooth, texts
from tests.unit.sampler.plans import PLANS, SD, SHAPE, last


@settings(max_examples=20)
@given(name=st.sampled_from(list(PLANS)), seeds=st.lists(st.integers(0, 2**31), min_size=2, max_size=3))
def test_a_batch_of_prompts_equals_its_clips_run_alone(name: str, seeds: list[int]) -> None:
    plan, networks = PLANS[name], (Smooth(0.1), Smooth(0.4, mixing=True))
    batch = [Generator().manual_seed(seed + 1) for seed in seeds]
    prompts, negative = torch.randn(len(seeds), 3, 2, generator=Generator().manual_seed(2)), texts(len(seeds))[1]
    together = last(
        seeded_noise((len(seeds), *SHAPE[1:]), seeds), plan, *networks, (prompts, negative), generator=batch
    )
    alone = [
        last(
            seeded_noise(SHAPE, [seed]),
            plan,
            *networks,
            (prompts[i : i + 1], negative[:1]),
            generator=Generator().manual_seed(seed + 1),
        )
        for i, seed in enumerate(seeds)
    ]
    assert (together - torch.cat(alone)).abs().max() <= 1e-5 * together.abs().max()


def test_networks_get_both_branches_of_the_guidance_in_one_batch() -> None:
    image, video = Constant(0.1), Constant(0.2)
    last(seeded_noise(SHAPE, 9), mixed_plan(SD, 12), image, video)
    assert {shape for shape, _ in image.calls} == {(6, 4, 4, 4)}  # two CFG branches of three frames
    assert {shape for shape, _ in video.calls} == {(2, 4, 3, 4, 4)}


@settings(max_examples=20)
@given(interval=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted))
def test_k_zigzags_cost_2k_image_and_2k_video_calls_on_top_of_the_ordinary_steps(interval: list[float]) -> None:
    """V = 50 + 2K, I = 2K; planned and made."""
    image, video, plan = Constant(0.1), Constant(0.2), mixed_plan(SD, 50, interval=(interval[0], interval[1]))
    k = len([i for i in range(50) if round(50 * interval[0]) <= i < round(50 * interval[1]) and i < 49])
    last(seeded_noise(SHAPE, 9), plan, image, video)
    assert plan.calls == {"image": 2 * k, "video": 50 + 2 * k} == {"image": len(image.calls), "video": len(video.calls)}


@pytest.mark.parametrize("name", PLANS)
def test_planned_calls_are_the_calls_made(name: str) -> None:
    image, video = Constant(0.1, 0.2), Constant(0.2, 0.1)
    last(seeded_noise(SHAPE, 9), PLANS[name], image, video)
    assert {"image": len(image.calls), "video": len(video.calls)} == PLANS[name].calls


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_resumed_at_any_step_ends_in_the_same_bytes(name: str) -> None:
    cond, uncond = texts()
    models = {"image": ImageDenoiser(Smooth(0.1), cond, uncond), "video": VideoDenoiser(Smooth(0.4), cond, uncond)}
    generator = Generator().manual_seed(3)
    steps, states = [], []
    for step in sample(seeded_noise(SHAPE, 10), PLANS[name], **models, generator=generator):
        steps.append(step)
        states.append(generator.get_state())
    assert [(step.index, step.total) for step in steps] == [(i, len(PLANS[name])) for i in range(len(PLANS[name]))]
    for step, state in zip(steps[:-1], states, strict=False):
        generator = Generator()
        generator.set_state(state)
        rest = sample(
            step.latents, PLANS[name], **models, start=step.index + 1, memory=step.memory, generator=generator
        )
        assert torch.equal(list(rest)[-1].latents, steps[-1].latents)


@pytest.mark.parametrize("name", PLANS)
def test_steps_estimate_the_clip_that_the_networks_see(name: str) -> None:
    """Networks that know the clip, and so predict exactly the noise that covers it."""
    clip = seeded_noise(SHAPE, 40)

    def seen(x: Tensor) -> Tensor:
        return clip if x.shape == clip.shape else resized(clip, x.shape[-1] / clip.shape[-1])

    def knows(x: Tensor, _timestep: int, alpha: float, _guidance: float, *, uncond: float = 1.0) -> Tensor:
        return uncond * (x - alpha**0.5 * seen(x)) / (1 - alpha) ** 0.5

    steps = list(sample(seeded_noise(SHAPE, 41), PLANS[name], image=knows, video=knows, generator=Generator()))
    for step in steps:
        if step.prediction is None:
            assert step.estimate is step.latents
        else:
            assert torch.allclose(step.estimate, seen(step.estimate), atol=2e-3)
    assert steps[0].prediction is not None


@pytest.mark.parametrize(
    ("name", "missing"), [("official videocrafter", "x0"), ("free init", "initial"), ("ddim apg", "momentum")]
)
def test_resuming_without_the_memory_a_plan_needs_is_refused(name: str, missing: str) -> None:
    with pytest.raises(IncompatibleInputs, match=rf"start=2 needs memory\['{missing}'\]: pass memory=step.memory"):
        sample(seeded_noise(SHAPE, 10), PLANS[name], image=object(), video=object(), start=2)  # type: ignore[arg-type]


def test_stopping_the_iteration_stops_the_work_and_grad_mode_is_left_alone() -> None:
    cond, uncond = texts()
    network = Constant(0.1)
    run = sample(seeded_noise(SHAPE, 11), ddim_plan(SD, 10), video=VideoDenoiser(network, cond, uncond))
    next(run)
    assert torch.is_grad_enabled()
    assert len(network.calls) == 1


def test_missing_model_is_named_before_any_work() -> None:
    with pytest.raises(IncompatibleInputs, match=r"calls the image model .* times: pass image="):
        sample(seeded_noise(SHAPE, 12), mixed_plan(SD, 10), video=VideoDenoiser(Constant(0.0), *texts()))


def test_start_outside_the_plan_is_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"start=11 is outside 0\.\.10"):
        sample(seeded_noise(SHAPE, 13), ddim_plan(SD, 10), video=VideoDenoiser(Constant(0.0), *texts()), start=11)


def test_noise_comes_from_the_generator_alone() -> None:
    plan, x, networks = PLANS["mixed R-I"], seeded_noise(SHAPE, 20), (Smooth(0.1), Smooth(0.4))
    runs = [last(x, plan, *networks, generator=Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    with pytest.raises(IncompatibleInputs, match="3 generators for a batch of 1"):
        last(x, plan, *networks, generator=[Generator()] * 3)


def test_a_custom_denoiser_is_any_callable_of_four() -> None:
    plan, x = mixed_plan(SD, 4), seeded_noise(SHAPE, 22)
    network: Any = lambda latents, timestep, alpha, guidance: 0.1 * latents  # noqa: E731
    assert list(sample(x, plan, image=network, video=network))[-1].latents.isfinite().all()


class FailsAt:
    """NaN or infinity in one pixel from the n-th call on."""

    def __init__(self, n: int, value: float) -> None:
        self.n, self.value = n, value

    def __call__(self, x: Tensor, timestep: int, encoder_hidden_states: Tensor) -> Tensor:
        self.n -= 1
        y = 0.1 * x
        if self.n < 0:
            y[(0,) * y.ndim] = self.value
        return y


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_stops_the_run_and_names_step_and_move(value: float) -> None:
    """The video model's 8th call: three of each of the steps 0 and 1, then the second of step 2, its fourth move."""
    plan, seen = mixed_plan(SD, 6), []
    cond, uncond = texts()
    models = {
        "image": ImageDenoiser(Smooth(0.1), cond, uncond),
        "video": VideoDenoiser(FailsAt(7, value), cond, uncond),
    }
    with pytest.raises(LatentsNotFinite, match=r"after move 4 of step 2, Move\(model='video'.*bfloat16") as caught:
        seen.extend(step.index for step in sample(seeded_noise(SHAPE, 23), plan, **models))
    assert seen == [0, 1]
    assert (caught.value.step, caught.value.number, caught.value.move) == (2, 4, plan.steps[2][3])
    again = pickle.loads(pickle.dumps(caught.value))  # the worker's child process sends it to the parent
    assert (str(again), again.move) == (str(caught.value), caught.value.move)


def test_latents_that_are_not_finite_are_refused_before_any_work() -> None:
    x = seeded_noise(SHAPE, 24)
    x[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(IncompatibleInputs, match="before the first move"):
        sample(x, ddim_plan(SD, 4), video=VideoDenoiser(Constant(0.0), *texts()))


def test_models_of_another_latent_space_are_refused_before_any_work() -> None:
    class Sixteen(Constant):
        config = type("Config", (), {"in_channels": 16})()

    image, video = ImageDenoiser(Sixteen(0.0), *texts()), VideoDenoiser(Constant(0.0), *texts())
    with pytest.raises(IncompatibleInputs, match=r"image model works on 16 latent channels.*share one latent space"):
        sample(seeded_noise(SHAPE, 25), mixed_plan(SD, 10), image=image, video=video)
    with pytest.raises(IncompatibleInputs, match=r"latents \(4, 3, 4, 4\) must be"):
        sample(seeded_noise(SHAPE, 25)[0], ddim_plan(SD, 10), video=video)
