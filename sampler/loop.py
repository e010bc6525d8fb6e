"""The sampling loop: applies the moves of a plan to the latents and yields after every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sampler.denoise_and_goback_moves import AnyMove, Call, ResizingMove, Restart, SecondOrderMove
from sampler.errors import IncompatibleInputs, InvalidSetting
from sampler.finite_check import FiniteCheck
from sampler.freeinit import restart_latents
from sampler.guidance import Denoiser, GuidedDenoiser, PreparedDenoiser, configured
from sampler.guidance_rules import MOMENTUM, RuledScale, guided_prediction
from sampler.noise import Generators, fresh_noise
from sampler.plan import Plan
from sampler.prediction import PredictionType, clean, converted
from sampler.resizing import resized
from sampler.validation import clip_tensor, floating_tensor


@dataclass(frozen=True)
class Prediction:
    """What the networks predicted in one move.

    Args:
        latents: what they were called for, (B, C, F, h, w), variance-preserving.
        p: the sum of their answers, of the same shape.
        alpha: noise level of the latents, abar in [0, 1].
        kind: what p is.
    """

    latents: Tensor
    p: Tensor
    alpha: float
    kind: PredictionType = "epsilon"

    @property
    def clean(self) -> Tensor:
        """x0, (B, C, F, h, w); from epsilon (x - sqrt(1 - abar) eps) / sqrt(abar) (arXiv:2010.02502 Eq. 9)."""
        return clean(self.latents, self.p, self.alpha, self.kind)


@dataclass(frozen=True)
class Step:
    """The state after one step.

    Args:
        index: the step, from 0.
        total: number of steps of the plan.
        latents: (B, C, F, h, w) float32; in EVS's image steps h and w are larger.
        memory: further tensors of the shape of the latents that the rest of the run needs: "x0" for the multistep
            solver, "initial" noise for FreeInit, "momentum" for APG; empty for all other plans. Save it with the
            latents to resume.
        prediction: that of the last move that called a network; None if the step called none.
    """

    index: int
    total: int
    latents: Tensor
    memory: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    prediction: Prediction | None = None

    @property
    def estimate(self) -> Tensor:
        """What the finished clip may look like, (B, C, F, h, w), to show it early: computed when asked for, without a
        network call. The latents themselves if the step called no network."""
        return self.latents if self.prediction is None else self.prediction.clean


class LatentsNotFinite(ArithmeticError):
    """A move left NaN or infinity in the latents.

    Attributes:
        step: the step, from 0.
        number: the move within the step, from 1.
        move: that move.
    """

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
    """Run `plan` from start noise; a generator, so the caller controls progress, cancellation and checkpoints.

    Args:
        latents: start noise (B, C, F, h, w), or the latents of the last finished step; computed in float32.
        plan: what to run, from one of the plan functions.
        image, video: the models that the plan calls.
        generator: for plans that draw noise (R, VideoCrafter's solver, FreeInit): one, or one for each clip of the
            batch, which makes a batch equal its clips run alone. None: torch's global generator.
        start: number of steps already done, to resume.
        memory: `Step.memory` of the last finished step, to resume. The generator must be in the state it had then.

    Yields:
        The state after each step. Resuming from any of them gives the same bytes as an uninterrupted run.

    Raises:
        IncompatibleInputs: at once, if a model that the plan calls is missing, or if latents, models, generators and
            plan do not fit together: among others if the plan calls a model that predicts epsilon at pure noise, or
            a model that sees the first frame only in another plan than a fused one.
        InvalidSetting: at once, if `start` is outside the plan.
        LatentsNotFinite: a move left NaN or infinity; on a CPU right after its step, on a GPU up to two steps later
            (the loop never waits for a GPU), in any case before the last step is yielded.
    """
    models = {name: model for name, model in (("image", image), ("video", video)) if model is not None}
    _check(latents, plan, models, generator, start)
    x = latents.float()
    prepared = _Models({name: models[name] for name, count in plan.calls.items() if count}, x)
    return _run(x, plan, prepared, generator, start, _initial_memory(x, plan, start, memory or {}))


def _check(latents: Any, plan: Plan, models: Mapping[str, Denoiser], generator: Generators, start: Any) -> None:
    for name, count in plan.calls.items():
        if count and name not in models:
            raise IncompatibleInputs(f"the plan calls the {name} model {count} times: pass {name}=...")
        if count:
            _check_is_denoiser(name, models[name])
    if not clip_tensor("latents", latents).isfinite().all():
        raise IncompatibleInputs("latents contain NaN or infinity before the first move; start from finite noise")
    if isinstance(generator, Sequence) and len(generator) != len(latents):
        raise IncompatibleInputs(
            f"{len(generator)} generators for a batch of {len(latents)}; give one for each clip, or one"
        )
    if not isinstance(start, int) or start not in range(len(plan) + 1):  # 1.0 is in a range too
        raise InvalidSetting(f"start={start!r} is outside 0..{len(plan)}, the steps of the plan")
    for index, moves in enumerate(plan.steps[start:], start):
        for call in (call for move in moves for call in move.calls):
            _check_call(index, call, models[call.model])


def _check_is_denoiser(name: str, model: Denoiser) -> None:
    """Raises IncompatibleInputs for a network that no denoiser is around."""
    if configured(model, "in_channels") is not None:
        network, wanted = type(model).__name__, f"{name.capitalize()}Denoiser"
        raise IncompatibleInputs(f"{name}={network} is a network; pass {wanted}({network}, cond, uncond)")


def _check_call(step: int, call: Call, model: Denoiser) -> None:
    """Raises IncompatibleInputs if the model cannot answer this call."""
    guided = isinstance(model, GuidedDenoiser)
    if call.alpha == 0 and (not guided or model.prediction_type == "epsilon"):
        raise IncompatibleInputs(
            f"step {step} calls the {call.model} model at pure noise (abar = 0), where epsilon says nothing of the "
            "clip: begin the interval of that model later, or use a model that predicts v or flow"
        )
    if guided and model.only_adds and call.uncond:
        raise IncompatibleInputs(
            f"step {step} has a move of the {call.model} model alone, which sees the first frame only: others would "
            "stay behind at another noise level. Use fused_plan, or a denoiser with frames='all'"
        )


@torch.no_grad()
def _run(
    x: Tensor,
    plan: Plan,
    models: _Models,
    generator: Generators,
    start: int,
    memory: dict[str, Tensor],
) -> Iterator[Step]:
    finite, total = FiniteCheck(x, len(plan) - start), len(plan)
    for index, moves in enumerate(plan.steps[start:], start):
        after: list[tuple[int, Tensor]] = []
        predicted: Prediction | None = None
        for number, move in enumerate(moves, 1):
            if not move.is_free:
                prediction = _predicted(move, x, models, memory)
                x = _apply(move, x, prediction, generator, memory)
                after.append((number, x))
                predicted = prediction or predicted
        if failed := finite.check(index, after, is_last=index == total - 1):
            raise LatentsNotFinite(failed.step, failed.number, plan.steps[failed.step][failed.number - 1])
        yield Step(index, total, x, dict(memory), predicted)


class _CustomDenoiser:
    """Any callable that answers with epsilon, see `Denoiser`."""

    prediction_type: PredictionType = "epsilon"

    def __init__(self, model: Denoiser) -> None:
        self._model = model

    def guided(self, latents: Tensor, timestep: float, alpha: float, guidance: float, uncond: float) -> Tensor:
        # `uncond` is left out where it is 1, so that custom denoisers need it for fused plans only.
        further = {} if uncond == 1 else {"uncond": uncond}
        eps = floating_tensor("the denoiser's answer", self._model(latents, timestep, alpha, guidance, **further))
        if eps.shape != latents.shape:  # it would be repeated to their shape
            shapes = f"{tuple(eps.shape)} for latents {tuple(latents.shape)}"
            raise IncompatibleInputs(f"the denoiser answered {shapes}; it must return epsilon of their shape")
        return eps

    def both(self, latents: Tensor, timestep: float, alpha: float) -> tuple[Tensor, Tensor]:
        return self.guided(latents, timestep, alpha, 0.0, 1), self.guided(latents, timestep, alpha, 1.0, 1)


class _Models:
    """The models that a plan calls, each prepared once for latents of one height and width."""

    def __init__(self, models: Mapping[str, Denoiser], x: Tensor) -> None:
        self._models = models
        self._prepared: dict[tuple[str, torch.Size], PreparedDenoiser | _CustomDenoiser] = {}
        for name in models:  # so that what does not fit is refused before the first step
            self.get(name, x)

    @torch.no_grad()
    def get(self, name: str, x: Tensor) -> PreparedDenoiser | _CustomDenoiser:
        model, key = self._models[name], (name, x.shape)
        if key not in self._prepared:
            self._prepared[key] = model.prepare(x) if isinstance(model, GuidedDenoiser) else _CustomDenoiser(model)
        return self._prepared[key]


def _predicted(move: AnyMove, x: Tensor, models: _Models, memory: dict[str, Tensor]) -> Prediction | None:
    """The sum of the calls, as what the first of them predicts; None if the move calls no network."""
    if not move.calls:
        return None
    first, *others = move.calls
    model = models.get(first.model, x)
    kind, p = model.prediction_type, _answer(model, x, first, memory)
    for call in others:
        model = models.get(call.model, x)
        answer = _answer(model, x, call, memory)
        p = p + converted(answer, x, call.alpha, model.prediction_type, kind, call.uncond)
    return Prediction(x, p, first.alpha, kind)


def _apply(
    move: AnyMove, x: Tensor, prediction: Prediction | None, generator: Generators, memory: dict[str, Tensor]
) -> Tensor:
    """The latents after `move`; `memory` is read and updated by the moves that need it."""
    if isinstance(move, Restart):
        return restart_latents(x, memory["initial"], fresh_noise(x, generator), move)
    c = move.coefficients_of(prediction.kind if prediction is not None else "flow")
    if isinstance(move, ResizingMove) and prediction is not None:
        moved = c.x0 * resized(prediction.clean, move.factor)
        return moved + c.noise * fresh_noise(moved, generator) if c.noise else moved
    moved = c.x * x
    if c.x0:
        moved += c.x0 * memory["x0"]
    if c.noise:
        moved += c.noise * fresh_noise(x, generator, by_frame=move.draws_by_frame)
    if prediction is not None:
        moved += c.p * prediction.p
        if isinstance(move, SecondOrderMove):
            memory["x0"] = prediction.clean
    return moved


def _answer(model: PreparedDenoiser | _CustomDenoiser, x: Tensor, call: Call, memory: dict[str, Tensor]) -> Tensor:
    """The guided prediction of one call."""
    scale = call.guidance
    if not isinstance(scale, RuledScale):
        return model.guided(x, call.timestep, call.alpha, scale, call.uncond)
    both, by_frame = model.both(x, call.timestep, call.alpha), call.model == "image"
    return guided_prediction(scale, x, *both, call.alpha, model.prediction_type, by_frame=by_frame, memory=memory)


def _initial_memory(x: Tensor, plan: Plan, start: int, memory: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the run from `start` on needs of the steps before it."""
    moves = [move for step in plan.steps[start:] for move in step]
    solver = next((move for move in moves if isinstance(move, SecondOrderMove)), None)
    needed = {"x0"} if solver is not None and solver.coefficients_of("flow").x0 else set[str]()
    needed |= {"initial" for move in moves if isinstance(move, Restart)}
    if _uses_momentum(plan.steps[:start]) and _uses_momentum(plan.steps[start:]):
        needed |= {MOMENTUM}
    known = {"initial": x} if start == 0 else memory
    if missing := needed - set(known):
        raise IncompatibleInputs(
            f"start={start} needs memory[{missing.pop()!r}]: pass memory=step.memory of the last finished step"
        )
    return {name: known[name] for name in needed}


def _uses_momentum(steps: Sequence[Sequence[AnyMove]]) -> bool:
    scales = (call.guidance for moves in steps for move in moves for call in move.calls)
    return any(isinstance(scale, RuledScale) and scale.uses_momentum for scale in scales)
