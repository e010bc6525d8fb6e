"""The noise that a run begins with."""

from __future__ import annotations

import torch
from torch import Tensor

from sampler import Plan, free_noise
from service.jobs.model import Generation


def start_noise(shape: tuple[int, ...], generator: torch.Generator, generation: Generation, plan: Plan) -> Tensor:
    """Latents of `shape`, float32 on the CPU. Rescheduled for a clip that the video model sees through windows.

    Noise that the run draws later is independent for every frame, as in diffusers' FreeInit. So is all noise of a run
    without the video model: its frames would otherwise be those of the first window again.
    """
    windows = generation.context_windows
    if windows is None or not plan.calls.get("video"):
        return torch.randn(shape, generator=generator)
    return free_noise(shape, generator, length=windows.length, stride=windows.stride, noise_type=windows.noise_type)
