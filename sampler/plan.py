"""A plan: every move of a run as data, without tensors or networks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sampler.denoise_and_goback_moves import AnyMove, Call
from sampler.plan_table import table


@dataclass(frozen=True)
class Plan:
    """Every move of a run; `print(plan)` shows a table with one row for each distinct kind of step.

    `repr(plan)` is part of every checkpoint's fingerprint and must not change.

    Args:
        steps: the moves of each step, in order. `len(plan)` and iteration go over the steps.
    """

    steps: tuple[tuple[AnyMove, ...], ...]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[AnyMove, ...]]:
        return iter(self.steps)

    def __str__(self) -> str:
        return table(self.steps)

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
