"""What the two parts of a run give, and how long its phases took."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from service.jobs.model import Phase


@dataclass
class SampledLatents:
    """Latents (1, C, F, h, w) at the end of their plan, and how long each phase took, in seconds."""

    latents: Tensor
    steps: int
    timings: dict[str, float] = field(default_factory=dict)
    low_memory: bool = False


@dataclass
class Clip:
    """Frames (F, H, W, 3) uint8 and how long each phase took, in seconds."""

    frames: Tensor
    timings: dict[str, float] = field(default_factory=dict)


@contextmanager
def timed(timings: dict[str, float], phase: Phase) -> Generator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        timings[phase] = timings.get(phase, 0.0) + time.perf_counter() - began
