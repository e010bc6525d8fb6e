"""The loop: a generator over a plan. The caller owns progress, cancelling and saving by simply iterating."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sampler.denoisers import Denoiser
from sampler.errors import IncompatibleInputs, InvalidSetting
from sampler.finite_check import FiniteCheck
from sampler.moves import AnyMove, Restart, SolverMove
from sampler.plan import Plan
from sampler.program import Generators, Program


@dataclass(frozen=True)
class Step:
    """State after a whole step: `index` of `total` (0-based), latents (B, C, F, h, w) float32.

    `memory` is what the rest of the run needs beside the latents, by name, each of their shape: "x0" of a multistep
    solver, "initial" noise of FreeInit; empty for all other plans. Save it with the latents to resume.
    """

    index: int
    total: int
    latents: Tensor
    memory: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


class LatentsNotFinite(ArithmeticError):
    """A move left NaN or infinity in the latents. `step` is 0-based, `number` counts the moves of the step from 1."""

    def __init__(self, step: int, number: int, move: AnyMove) -> None:
        self.step, self.number, self.move = step, number, move
        super().__init__(
            f"latents are not finite after move {number} of step {step}, {move}; "
            "a network in float16 may have overflowed: run it in bfloat16 or float32, or lower the guidance"
        )

    def __reduce__(self) -> tuple[type[LatentsNotFinite], tuple[int, int, AnyMove]]:
        return type(self), (self.step, self.number, self.move)  # the default would pass the message alone


def sample(
    latents: Tensor,
    plan: Plan,
    *,
    image: Denoiser | None = None,
    video: Denoiser | None = None,
    generator: Generators = None,
    start: int = 0,
    memory: Mapping[str, Tensor] | None = None,
) -> Iterator[Step]:
    """Run `plan` from noise (B, C, F, h, w); yields after every step, so stopping the iteration stops the work.

    Args:
        generator: for plans that draw noise (R, VideoCrafter's solver, FreeInit), or one for each clip of the batch;
            None is torch's global generator. Other plans draw nothing.
        start: resumes: the number of steps that are already in `latents`.
        memory: resumes: `Step.memory` of the last step done; the generator must be in the state it then had.

    Raises IncompatibleInputs at once if a model that the plan calls is missing, or if latents, models and plan do not
    fit; InvalidSetting for a `start` outside the plan; LatentsNotFinite after a step that went wrong: at once on a CPU,
    up to two steps later on a GPU, which nothing here waits for, and before the last step is yielded in any case.
    """
    models: dict[str, Denoiser | None] = {"image": image, "video": video}
    used = [name for name, calls in plan.calls.items() if calls]
    for name in used:
        if models[name] is None:
            raise IncompatibleInputs(f"the plan calls the {name} model {plan.calls[name]} times: pass {name}=...")
    _check_latents(latents, {name: models[name] for name in used})
    if isinstance(generator, Sequence) and len(generator) != len(latents):
        raise IncompatibleInputs(
            f"{len(generator)} generators for a batch of {len(latents)}; give one for each clip, or one"
        )
    if not 0 <= start <= len(plan):
        raise InvalidSetting(f"start={start} is outside 0..{len(plan)}, the steps of the plan")
    x = latents.float()
    kept = {"initial": x} if start == 0 else dict(memory or {})
    needed = _remembered(plan, start)
    kept = {name: tensor for name, tensor in kept.items() if name in needed}
    if missing := needed - set(kept):
        raise IncompatibleInputs(
            f"start={start} needs memory[{missing.pop()!r}]: pass memory=step.memory of the last step that was done"
        )
    return _run(x, plan, {name: model for name, model in models.items() if model is not None}, generator, start, kept)


@torch.no_grad()
def _run(
    x: Tensor, plan: Plan, models: dict[str, Denoiser], generator: Generators, start: int, memory: dict[str, Tensor]
) -> Iterator[Step]:
    """Nothing here waits for the device, but for the watch when the host is steps ahead of it."""
    steps = Program(x, models, generator, memory).of(plan.steps[start:])
    watch, total = FiniteCheck(x, len(steps)), len(plan)
    for index, moves in enumerate(steps, start):
        after: list[tuple[int, Tensor]] = []
        for number, advance in moves:
            x = advance(x)
            after.append((number, x))
        if trouble := watch.tell(index, after, is_last=index == total - 1):
            move = plan.steps[trouble.index][trouble.number - 1]
            raise LatentsNotFinite(trouble.index, trouble.number, move)
        yield Step(index, total, x, dict(memory))


def _remembered(plan: Plan, start: int) -> set[str]:
    """The names that a run from step `start` on needs in its memory."""
    moves = [move for step in plan.steps[start:] for move in step]
    solver = next((move for move in moves if isinstance(move, SolverMove)), None)
    names = {"x0"} if solver is not None and solver.coefficients.x0 else set[str]()
    return names | {"initial" for move in moves if isinstance(move, Restart)}


def _check_latents(latents: Tensor, models: Mapping[str, Denoiser | None]) -> None:
    if latents.ndim != 5:
        raise IncompatibleInputs(f"latents {tuple(latents.shape)} must be (batch, channels, frames, height, width)")
    for name, model in models.items():
        channels = getattr(model, "channels", None)  # a denoiser of one's own need not say
        if channels not in (None, latents.shape[1]):
            raise IncompatibleInputs(
                f"the {name} model works on {channels} latent channels, the latents {tuple(latents.shape)} have "
                f"{latents.shape[1]}; image model, video model and latents must share one latent space"
            )
    if not latents.isfinite().all():
        raise IncompatibleInputs("latents hold NaN or infinity before the first move; start from finite noise")
