"""A plan: what a run will do, as data. Knows no tensors and no networks; mixed.py and official.py make plans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sampler.moves import AnyMove, Call
from sampler.plan_table import table


@dataclass(frozen=True)
class Plan:
    """The steps of a run, each a tuple of moves; `print(plan)` shows every distinct kind of step."""

    steps: tuple[tuple[AnyMove, ...], ...]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[AnyMove, ...]]:
        return iter(self.steps)

    def __str__(self) -> str:
        return table(self.steps)

    @property
    def calls(self) -> dict[str, int]:
        """The network calls of the run, per model; two guidance halves count as one call."""
        return _count(call for step in self.steps for move in step for call in move.calls)

    @property
    def nominal_calls(self) -> dict[str, int]:
        """The calls as the algorithm writes them: also those whose epsilon has no weight, which are not made."""
        return _count(call for step in self.steps for move in step for call in move.networks)


def _count(calls: Iterable[Call]) -> dict[str, int]:
    count = Counter(call.model for call in calls)
    return {name: count[name] for name in ("image", "video")}
