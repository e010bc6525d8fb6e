"""Start noise of long clips: bytes of diffusers' `enable_free_noise` from the same seed."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from diffusers.pipelines.free_noise_utils import AnimateDiffFreeNoiseMixin
from torch import Generator, Tensor

from sampler import IncompatibleInputs, InvalidSetting, free_noise, seeded_noise
from sampler.free_noise import NoiseType
from service.jobs import context_windows

SHAPE = (2, 3, 11, 4, 5)
TYPES = get_args(NoiseType)


def theirs(frames: int, length: int, stride: int, noise_type: str) -> Tensor:
    mixin: Any = AnimateDiffFreeNoiseMixin()
    mixin.vae_scale_factor = 1
    mixin._free_noise_context_length, mixin._free_noise_context_stride = length, stride
    mixin._free_noise_noise_type = noise_type
    generator = Generator().manual_seed(5)
    # diffusers 0.42 repeats noise only if it is given that of one window (huggingface/diffusers#13653)
    given = torch.randn(2, 3, length, 4, 5, generator=generator) if noise_type == "repeat_context" else None
    return mixin._prepare_latents_free_noise(2, 3, frames, 4, 5, torch.float32, "cpu", generator, given)


@pytest.mark.parametrize("noise_type", TYPES)
@pytest.mark.parametrize(("frames", "length", "stride"), [(8, 4, 2), (11, 4, 2), (11, 4, 3), (9, 3, 3), (16, 5, 1)])
def test_noise_is_that_of_diffusers(frames: int, length: int, stride: int, noise_type: Any) -> None:
    found = free_noise((2, 3, frames, 4, 5), 5, length=length, stride=stride, noise_type=noise_type)
    assert torch.equal(found, theirs(frames, length, stride, noise_type))


@pytest.mark.parametrize("noise_type", TYPES)
@pytest.mark.parametrize("length", [11, 30])
def test_clip_of_one_window_has_ordinary_noise(length: int, noise_type: Any) -> None:
    assert torch.equal(free_noise(SHAPE, 5, length=length, noise_type=noise_type), seeded_noise(SHAPE, 5))


def test_every_frame_after_the_first_window_is_one_of_its_frames_and_a_generator_goes_on() -> None:
    generator = Generator().manual_seed(5)
    noise = free_noise(SHAPE, generator, length=4, stride=4)
    first = list(noise[:, :, :4].unbind(2))
    assert all(any(torch.equal(frame, one) for one in first) for frame in noise[:, :, 4:].unbind(2))
    assert not torch.equal(noise[:, :, 4:8], noise[:, :, :4])
    assert not torch.equal(free_noise(SHAPE, generator, length=4, stride=4), noise)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length=0 must be a whole number of at least 1"),
        ({"length": 4, "stride": 0}, "stride=0 must be a whole number of at least 1"),
        ({"length": 4, "stride": 5}, "stride=5 is above length=4; write 4 or less"),
        ({"length": 4, "noise_type": "shuffle"}, "noise_type='shuffle' is not supported; use one of 'shuffle_context'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        free_noise(SHAPE, 1, **settings)


def test_shape_of_one_frame_is_refused() -> None:
    with pytest.raises(IncompatibleInputs, match=r"shape \(4, 8, 8\) must be"):
        free_noise((4, 8, 8), 1, length=4)


def test_registry_and_sampler_know_the_same_types() -> None:
    assert get_args(context_windows.NoiseType) == TYPES
