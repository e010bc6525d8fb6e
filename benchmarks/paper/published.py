"""Published figures, and whether a run may be printed next to them. The figures are in `published.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence

from benchmarks.paper.facts import HERE, Fact
from service.frozen_model import FrozenModel


class Figure(FrozenModel):
    """One published number. `value` is None where it is not known."""

    benchmark: str
    system: str
    measure: str
    value: float | None = None
    n: Fact[int]
    clips: Fact[int]
    source: str
    date: str


def figures(benchmark: str) -> list[Figure]:
    found = tomllib.loads((HERE / "published.toml").read_text(encoding="utf-8"))["figure"]
    return [figure for entry in found if (figure := Figure.model_validate(entry)).benchmark == benchmark]


def why_not_comparable(figure: Figure, n: int, clips: int, deviations: Sequence[str]) -> str | None:
    """The first reason not to print the figure next to a run; None if it is comparable.

    Args:
        n, clips: prompts of the run and clips of each.
        deviations: what the run does otherwise than the benchmark's protocol.
    """
    if figure.value is None:
        return "the figure is not known"
    for name, fact, ours in (("prompts", figure.n, n), ("clips per prompt", figure.clips, clips)):
        if fact.status != "known":
            return f"its number of {name} is {fact.text}: {fact.source}"
        if fact.value != ours:
            return f"it has {fact.value} {name}, this run {ours}"
    return f"this run has {deviations[0]}" if deviations else None
