"""Start noise of clips longer than their video model takes: FreeNoise's noise rescheduling (arXiv:2310.15169)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from sampler.errors import IncompatibleInputs, InvalidSetting
from sampler.validation import one_of, seeded_generator, whole_number

NoiseType = Literal["shuffle_context", "repeat_context", "random"]


def free_noise(
    shape: Sequence[int],
    seed: int | Generator,
    *,
    length: int,
    stride: int = 4,
    noise_type: NoiseType = "shuffle_context",
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normal start noise whose frames come again in another order: the paper's local noise shuffle.

        eps[i : i + stride] = shuffle(eps[i - length : i - length + stride]),  i = length, length + stride, ...

    A seed gives the noise of diffusers' `enable_free_noise`.

    Args:
        shape: (batch, channels, frames, height, width) of the latents.
        seed: an integer, or a generator on the CPU, which has drawn the noise afterwards.
        length: frames that the video model takes at once; shorter clips get the noise of `seeded_noise`.
        stride: frames from the begin of one window to that of the next, and frames that are shuffled among each other.
        noise_type: "shuffle_context": as above; "repeat_context": the first `length` frames again and again; "random":
            independent for every frame.
        device: where the result is moved to. None: it stays on the CPU.

    Returns:
        Latents of `shape`, float32.

    Raises:
        IncompatibleInputs, InvalidSetting: name the parameter, its value and what is allowed.
    """
    _check(shape, length, stride, noise_type)
    generator = seed if isinstance(seed, Generator) else seeded_generator(seed)
    batch, channels, frames, height, width = shape
    drawn = min(frames, length) if noise_type == "repeat_context" else frames
    noise = torch.randn((batch, channels, drawn, height, width), generator=generator)
    if noise_type == "repeat_context":
        noise = noise[:, :, torch.arange(frames) % length]
    if noise_type == "shuffle_context":
        _shuffle(noise, generator, length, stride)
    return noise.to(device)


def _shuffle(noise: Tensor, generator: Generator, length: int, stride: int) -> None:
    """Replace the frames after the first `length`, in place."""
    frames = noise.shape[2]
    for start in range(length, frames, stride):
        source = start - length + torch.randperm(stride, generator=generator)
        noise[:, :, start : start + stride] = noise[:, :, source[: frames - start]]


def _check(shape: Sequence[int], length: int, stride: int, noise_type: NoiseType) -> None:
    whole_number("length", length)
    whole_number("stride", stride)
    one_of("noise_type", noise_type, get_args(NoiseType))
    if stride > length:
        raise InvalidSetting(f"stride={stride} is above length={length}; write {length} or less, so that windows meet")
    if len(shape) != 5:
        raise IncompatibleInputs(f"shape {tuple(shape)} must be (batch, channels, frames, height, width)")
