"""What a caller can hand over by mistake: it is refused by name, not computed with and not left to torch's errors."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sampler import (
    FlowSchedule,
    IncompatibleInputs,
    InvalidSetting,
    NoiseSchedule,
    VideoDenoiser,
    ddim_plan,
    free_noise,
    noised,
    sample,
    seeded_noise,
)
from tests.unit.sampler.networks import Constant, texts
from tests.unit.sampler.plans import SD, SHAPE

PLAN = ddim_plan(SD, 3)
START = seeded_noise(SHAPE, 1)


def denoiser(network: object = None) -> VideoDenoiser:
    return VideoDenoiser(network or Constant(0.1), *texts())


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (START.int(), "latents has dtype torch.int32"),
        (START.to(torch.complex64), "latents has dtype torch.complex64"),
        (START.numpy(), "latents has type ndarray"),
        (START.tolist(), "latents has type list"),
        (START[:, :, :0], r"latents \(1, 4, 0, 4, 4\) must be .* each at least 1"),
    ],
    ids=["whole numbers", "complex numbers", "numpy", "list", "no frame"],
)
def test_latents_of_another_kind_are_refused(latents: Any, message: str) -> None:
    with pytest.raises(IncompatibleInputs, match=message):
        sample(latents, PLAN, video=denoiser())


def test_pixels_are_no_clean_latents() -> None:
    with pytest.raises(IncompatibleInputs, match=r"clip has dtype torch.uint8"):
        noised(torch.zeros(SHAPE, dtype=torch.uint8), PLAN, noise=START)
    with pytest.raises(IncompatibleInputs, match=r"noise has dtype torch.int64"):
        noised(START, PLAN, noise=START.long())


@pytest.mark.parametrize(
    "answer",
    [lambda x: None, lambda x: [], lambda x: (), lambda x: x.long(), lambda x: x.to(torch.complex64)],
    ids=["None", "empty list", "empty tuple", "whole numbers", "complex numbers"],
)
def test_a_network_must_answer_with_floating_point_numbers(answer: Callable[[Tensor], Any]) -> None:
    for network in (lambda x, t, **_: answer(x), lambda x, t, **_: SimpleNamespace(sample=answer(x))):
        with pytest.raises(IncompatibleInputs, match=r"the network's output has (type|dtype)"):
            list(sample(START, PLAN, video=denoiser(network)))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x[:, :1], r"answered \(1, 1, 3, 4, 4\) for latents \(1, 4, 3, 4, 4\)"),
        (lambda x: x.mean(), r"answered \(\) for latents"),
        (lambda x: None, "answer has type NoneType"),
    ],
    ids=["one channel", "one number", "None"],
)
def test_the_answer_of_a_custom_denoiser_is_not_repeated_to_the_shape_of_the_latents(
    answer: Callable[[Tensor], Any], message: str
) -> None:
    custom: Any = lambda latents, timestep, alpha, guidance: answer(latents)  # noqa: E731
    with pytest.raises(IncompatibleInputs, match=message):
        list(sample(START, PLAN, video=custom))


def test_a_network_is_no_denoiser() -> None:
    network: Any = type("UNet", (Constant,), {"config": SimpleNamespace(in_channels=4)})(0.1)
    with pytest.raises(IncompatibleInputs, match=r"video=UNet is a network; pass VideoDenoiser\(UNet, cond, uncond\)"):
        sample(START, PLAN, video=network)


def test_text_embeddings_must_be_tensors() -> None:
    none: Any = None
    with pytest.raises(IncompatibleInputs, match="uncond has type NoneType"):
        VideoDenoiser(Constant(0.1), texts()[0], none)
    with pytest.raises(IncompatibleInputs, match=r"cond has dtype torch.int64"):
        VideoDenoiser(Constant(0.1), *(text.long() for text in texts()))


@pytest.mark.parametrize("seed", [1.5, None, "7", 2**64, -(2**63) - 1, True])
def test_a_seed_that_torch_cannot_take_is_refused_by_name(seed: Any) -> None:
    for draw in (
        lambda: seeded_noise(SHAPE, [seed]),
        lambda: free_noise(SHAPE, seed, length=2, stride=1),
    ):
        with pytest.raises(InvalidSetting, match=r"seed=.* must be a whole number in"):
            draw()


def test_start_must_be_a_whole_number() -> None:
    start: Any = 1.0
    with pytest.raises(InvalidSetting, match=r"start=1\.0"):
        sample(START, PLAN, video=denoiser(), start=start)


@pytest.mark.parametrize("schedule", [NoiseSchedule, FlowSchedule])
def test_a_scheduler_is_not_its_config(schedule: Any) -> None:
    with pytest.raises(InvalidSetting, match=r"config has type SimpleNamespace; pass the mapping scheduler.config"):
        schedule.from_config(SimpleNamespace(config={}))
