"""A plan and its models -> one function for each move, every number worked out before the loop. Draws nothing itself.

A move along guided epsilon is x' = a x + u eps_u + c eps_c: the weights of the move, of the guidance and of the
prediction type are multiplied here, in float64, so that the loop does one multiplication and an addition per half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce

import torch
from torch import Generator, Tensor

from sampler.denoisers import Denoiser, GuidedDenoiser, Halves, Predict, halves_of
from sampler.freeinit import restart_latents
from sampler.moves import AnyMove, Call, FusedMove, Move, Renoise, Restart, SolverMove
from sampler.noise import fresh_noise

Generators = Generator | Sequence[Generator] | None
Advance = Callable[[Tensor], Tensor]
Numbered = tuple[tuple[int, Advance], ...]
Term = tuple[Predict, int | Tensor, tuple[float, ...]]


class Program:
    """Made for one run: the models for latents like these, and what that run draws and remembers.

    `memory` is read and written by the moves that need it, see `Step.memory`.
    """

    def __init__(
        self, like: Tensor, models: Mapping[str, Denoiser], generator: Generators, memory: dict[str, Tensor]
    ) -> None:
        self._like, self._models, self._generator, self._memory = like, models, generator, memory
        self._prepared: dict[tuple[str, Halves], Predict] = {}
        self._timesteps: dict[tuple[str, int], int | Tensor] = {}

    def of(self, steps: Sequence[Sequence[AnyMove]]) -> list[Numbered]:
        """For each step its moves that change something, by their number from 1: latents -> new latents."""
        return [
            tuple((number, self._advance(move)) for number, move in enumerate(moves, 1) if not move.is_free)
            for moves in steps
        ]

    def _advance(self, move: AnyMove) -> Advance:
        memory, generator = self._memory, self._generator
        if isinstance(move, Restart):
            return lambda x: restart_latents(x, memory["initial"], fresh_noise(x, generator), move)
        guided = all(isinstance(self._models[call.model], GuidedDenoiser) for call in move.calls)
        if guided and move.calls and not isinstance(move, SolverMove):
            return self._folded(move)
        return partial(_written_out, move=move, models=self._models, generator=generator, memory=memory)

    def _folded(self, move: Move | FusedMove | Renoise) -> Advance:
        a, terms = move.coefficients.x, list[Term]()
        for call in move.calls:
            model = self._models[call.model]
            assert isinstance(model, GuidedDenoiser)
            of_latents, parts = model.weights(call.alpha, call.guidance, call.uncond)
            a += move.coefficients.eps * of_latents
            weights = tuple(move.coefficients.eps * weight for weight in parts.values())
            terms.append((self._predict(call.model, model, halves_of(parts)), self._timestep(call, model), weights))
        return _along(terms, a)

    def _predict(self, name: str, model: GuidedDenoiser, halves: Halves) -> Predict:
        if (name, halves) not in self._prepared:
            self._prepared[name, halves] = model.prepare(self._like, halves)
        return self._prepared[name, halves]

    def _timestep(self, call: Call, model: GuidedDenoiser) -> int | Tensor:
        key = call.model, call.timestep
        if key not in self._timesteps:
            self._timesteps[key] = model.timestep(call.timestep, self._like)
        return self._timesteps[key]


def _along(terms: Sequence[Term], a: float) -> Advance:
    less = a - 1  # x + (a - 1) x is one fast operation; multiplying by a Python number makes a tensor of it first

    def advance(x: Tensor) -> Tensor:
        moved = x.add(x, alpha=less)
        for predict, timestep, weights in terms:
            for answer, weight in zip(predict(x, timestep), weights, strict=True):
                moved.add_(answer, alpha=weight)
        return moved

    return advance


def _written_out(
    x: Tensor, move: AnyMove, models: Mapping[str, Denoiser], generator: Generators, memory: dict[str, Tensor]
) -> Tensor:
    """Any move but a restart; for models of one's own, moves that draw noise, and a solver that leaves its x0."""
    assert not isinstance(move, Restart)
    weights = move.coefficients
    moved = weights.x * x
    if weights.x0:
        moved.add_(memory["x0"], alpha=weights.x0)
    if weights.noise:
        moved.add_(fresh_noise(x, generator, by_frame=move.draws_by_frame), alpha=weights.noise)
    if calls := move.calls:
        eps = reduce(torch.add, (_epsilon(models[call.model], x, call) for call in calls))
        moved.add_(eps, alpha=weights.eps)
        if isinstance(move, SolverMove):
            memory["x0"] = (x - (1 - move.src) ** 0.5 * eps) / move.src**0.5
    return moved


def _epsilon(model: Denoiser, x: Tensor, call: Call) -> Tensor:
    if call.uncond == 1:  # so that a denoiser of one's own needs to know `uncond` for fused plans only
        return model(x, call.timestep, call.alpha, call.guidance)
    return model(x, call.timestep, call.alpha, call.guidance, uncond=call.uncond)
