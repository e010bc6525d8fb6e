"""A plan: every move of a run as data, without tensors or networks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from sampler.denoise_and_goback_moves import AnyMove, Call, Move, ResizingMove, Restart, SecondOrderMove
from sampler.errors import InvalidSetting
from sampler.plan_table import table


@dataclass(frozen=True)
class Plan:
    """Every move of a run; `print(plan)` shows a table with one row for each distinct kind of step.

    `repr(plan)` is part of every checkpoint's fingerprint and must not change.

    Args:
        steps: the moves of each step, in order. `len(plan)` and iteration go over the steps.
        skipped: steps that `starting_at` has left out before them.
        only_from_noise: why the plan cannot begin at a clip, for people; None if it can.
    """

    steps: tuple[tuple[AnyMove, ...], ...]
    skipped: int = field(default=0, repr=False, compare=False, kw_only=True)
    only_from_noise: str | None = field(default=None, repr=False, compare=False, kw_only=True)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[AnyMove, ...]]:
        return iter(self.steps)

    def __str__(self) -> str:
        return table(self.steps)

    def starting_at(self, step: int) -> Plan:
        """The rest of the plan from `step` on, for a clip that is noised to the level of that step, see `noised`.

        The moves stay as they are: a zig-zag that goes back first still visits the noisier levels before `step`. Only
        a second-order step without its predecessor becomes one of first order, as in diffusers; and where `step` is one
        of EVS's enlarged ones, those up to the end of its stage have the size of the clip.

        Args:
            step: number of steps to leave out, 0 to `len(plan) - 1`.

        Raises:
            InvalidSetting: no such step, or the plan can only begin with noise (`official_plan`, `free_init_plan`).
        """
        self._check_can_begin_at_a_clip()
        _check_step(step, len(self))
        return replace(self, steps=_without_predecessor(self.steps[step:]), skipped=self.skipped + step)

    @property
    def first_alpha(self) -> float:
        """abar of the latents that the plan begins with, in [0, 1]; 0 is pure noise.

        Raises:
            InvalidSetting: the plan can only begin with noise, or has no moves.
        """
        self._check_can_begin_at_a_clip()
        first = next((move for step in self.steps for move in step), None)
        if first is None or isinstance(first, Restart):
            raise InvalidSetting("this plan begins at no noise level: its first move must be one of a network, or R")
        return first.src

    def _check_can_begin_at_a_clip(self) -> None:
        if self.only_from_noise is not None:
            raise InvalidSetting(f"this plan can only begin with noise: {self.only_from_noise}")

    @property
    def calls(self) -> dict[str, int]:
        """Network calls of the run by model; the two CFG branches of a call count once."""
        return _count(call for step in self.steps for move in step for call in move.calls)

    @property
    def nominal_calls(self) -> dict[str, int]:
        """Like `calls`, with those that are skipped because the coefficient of epsilon is 0."""
        return _count(call for step in self.steps for move in step for call in move.networks)


def _count(calls: Iterable[Call]) -> dict[str, int]:
    count = Counter(call.model for call in calls)
    return {name: count[name] for name in ("image", "video")}


def _check_step(step: Any, count: int) -> None:  # Any: what a caller passed is what is checked
    if not isinstance(step, int) or isinstance(step, bool) or step not in range(count):
        raise InvalidSetting(f"step={step!r} must be a whole number in 0..{count - 1}, so that at least one step runs")


def _without_predecessor(steps: tuple[tuple[AnyMove, ...], ...]) -> tuple[tuple[AnyMove, ...], ...]:
    """The first solver step has no x0 of a step before it, and latents that nothing has enlarged do not shrink."""
    kept = [list(moves) for moves in steps]
    for moves in kept:
        for k, move in enumerate(moves):
            if isinstance(move, SecondOrderMove | ResizingMove):
                moves[k] = _as_first(move)
                return tuple(map(tuple, kept))
    return steps


def _as_first(move: SecondOrderMove | ResizingMove) -> AnyMove:
    if isinstance(move, ResizingMove):
        step = move.model, move.timestep, move.src, move.dst, move.guidance
        return Move(*step) if move.factor < 1 else move
    return replace(move, before=None)  # pyright: ignore[reportReturnType]  # of its own class
