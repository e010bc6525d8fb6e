"""The loop: a generator over a plan. The caller owns progress, cancelling and saving by simply iterating."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sampler.denoisers import Denoiser
from sampler.plan import Plan


@dataclass(frozen=True)
class Step:
    """State after a whole step: `index` of `total` (0-based), latents (B, C, F, h, w) float32."""

    index: int
    total: int
    latents: Tensor


def sample(
    latents: Tensor,
    plan: Plan,
    *,
    image: Denoiser | None = None,
    video: Denoiser | None = None,
    generator: Generator | None = None,  # noqa: ARG001  DDIM moves draw no noise
    start: int = 0,
) -> Iterator[Step]:
    """Run `plan` from noise (B, C, F, h, w); yields after every step, so stopping the iteration stops the work.

    `start` resumes: the number of steps that are already in `latents`. Raises ValueError at once if a model that the
    plan calls is missing.
    """
    models: dict[str, Denoiser | None] = {"image": image, "video": video}
    for name, calls in plan.calls.items():
        if calls and models[name] is None:
            raise ValueError(f"the plan calls the {name} model {calls} times: pass {name}=...")
    if not 0 <= start <= len(plan):
        raise ValueError(f"start={start} is outside 0..{len(plan)}, the steps of the plan")
    return _run(latents, plan, {name: model for name, model in models.items() if model is not None}, start)


@torch.no_grad()
def _run(latents: Tensor, plan: Plan, models: dict[str, Denoiser], start: int) -> Iterator[Step]:
    x = latents.float()
    for index, moves in enumerate(plan.steps[start:], start):
        for move in moves:
            if move.is_free:
                continue
            eps = models[move.model](x, move.timestep, move.src, move.guidance)
            a, b = move.coefficients
            x = a * x + b * eps
        yield Step(index, len(plan), x)
