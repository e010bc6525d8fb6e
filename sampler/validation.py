"""Checks of settings and tensors: each returns the valid value or raises an error naming parameter, value and range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeGuard

from torch import Generator, Tensor

from sampler.errors import IncompatibleInputs, InvalidSetting

Range = tuple[float, float]
Guidance = float | Range  # one scale for the whole run, or the scales of its first and last step


def finite_number(name: str, value: Any) -> float:  # Any, here and below: what a caller passed is what is checked
    if not _is_number(value) or not math.isfinite(value):
        raise InvalidSetting(f"{name}={value!r} must be a finite number")
    return value


def whole_number(name: str, value: Any, hint: str = "", *, most: float = math.inf) -> int:
    """A whole number in 1..most; a float without a fraction is accepted."""
    if not _is_number(value) or not math.isfinite(value) or not 1 <= value <= most or value != int(value):
        allowed = "of at least 1" if most == math.inf else f"in 1..{most}"
        raise InvalidSetting(f"{name}={value!r} must be a whole number {allowed}{hint}")
    return int(value)


def seeded_generator(seed: Any) -> Generator:
    """A generator on the CPU. Raises InvalidSetting for a seed that torch cannot take."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not -(2**63) <= int(seed) < 2**64:
        raise InvalidSetting(f"seed={seed!r} must be a whole number in -2**63..2**64 - 1")
    return Generator().manual_seed(int(seed))


def floating_tensor(name: str, value: Any) -> Tensor:
    """Raises IncompatibleInputs: whole and complex numbers would lose a part of what they mean as float32."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = f"dtype {value.dtype}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        raise IncompatibleInputs(f"{name} has {found}, but must be a torch.Tensor of floating-point numbers")
    return value


def clip_tensor(name: str, value: Any) -> Tensor:
    """A clip (B, C, F, h, w). Raises IncompatibleInputs."""
    clip = floating_tensor(name, value)
    if clip.ndim != 5 or 0 in clip.shape:
        shape = tuple(clip.shape)
        raise IncompatibleInputs(f"{name} {shape} must be (batch, channels, frames, height, width), each at least 1")
    return clip


def config_mapping(config: Any) -> Mapping[str, Any]:
    if not isinstance(config, Mapping):
        raise InvalidSetting(f"config has type {type(config).__name__}; pass the mapping scheduler.config")
    return config  # pyright: ignore[reportUnknownVariableType]


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InvalidSetting(f"{name}={value!r} is not supported; use one of {', '.join(map(repr, allowed))}")


def pair_of_numbers(name: str, value: Any, meaning: str) -> tuple[Any, Any]:
    """Two numbers, each possibly NaN or infinite."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(_is_number, value)):  # pyright: ignore[reportUnknownArgumentType]
        raise InvalidSetting(f"{name}={value!r} must be {meaning}")
    return value[0], value[1]  # pyright: ignore[reportUnknownVariableType]


def guidance_range(name: str, value: Any) -> Range:
    """(first, last) guidance scale of a run; a single number is both."""
    meaning = "one guidance scale, or two: those of the first and the last step"
    first, last = (value, value) if _is_number(value) else pair_of_numbers(name, value, meaning)
    if not (0 <= first < math.inf and 0 <= last < math.inf):
        raise InvalidSetting(f"{name}={value!r} must be {meaning}; each finite and at least 0")
    return first, last


def guidance_ramp(name: str, value: Any, rho: Any, steps: int) -> list[float]:
    """The guidance scale of each of `steps` steps, with the spacing of arXiv:2206.00364 Eq. 5 between both ends.

    The released code calls it "dynamic CFG scale". `rho` = 1 is a straight line.
    """
    first, last = guidance_range(name, value)
    if finite_number("rho", rho) <= 0:
        raise InvalidSetting(f"rho={rho!r} must be greater than 0 (1: a straight line)")
    if steps == 1 or first == last:
        return [first] * steps
    start, end = first ** (1 / rho), last ** (1 / rho)
    return [(start + i / (steps - 1) * (end - start)) ** rho for i in range(steps)]


def guidance_ramps(image_guidance: Any, video_guidance: Any, rho: Any, steps: int) -> tuple[list[float], list[float]]:
    """The guidance scales of the image model and of the video model, step by step."""
    image = guidance_ramp("image_guidance", image_guidance, rho, steps)
    return image, guidance_ramp("video_guidance", video_guidance, rho, steps)


def active_steps(interval: Any, steps: int, name: str = "interval") -> range:
    """The steps that `interval` covers: two fractions of the run."""
    meaning = "two fractions of the run with 0 <= begin <= end <= 1"
    begin, end = pair_of_numbers(name, interval, meaning)
    if not 0 <= begin <= end <= 1:
        raise InvalidSetting(f"{name}={interval!r} must be {meaning}")
    return range(round(begin * steps), round(end * steps))


def _is_number(value: Any) -> TypeGuard[float]:
    return not isinstance(value, bool) and isinstance(value, Real)
