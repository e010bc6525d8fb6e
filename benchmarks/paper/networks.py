"""What a feature network is to the benchmarks: one clip in, its features and scores out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.clips import Frames
from benchmarks.paper.prompts import Prompt

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ClipFeatures:
    """Of one clip.

    Args:
        spaces: vectors (k, d) by space: k is 1 where the network sees the clip as a whole, F where it sees frames.
        scores: numbers about the clip and its prompt.
    """

    spaces: Mapping[str, Array]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class RealSet:
    """Features (n, k, d) of real clips by space.

    Args:
        reference: what generated clips are compared with.
        others: more real clips, for the floor; None if there are none.
        source: what they are.
    """

    reference: Mapping[str, Array]
    others: Mapping[str, Array] | None
    source: str


@dataclass(frozen=True)
class Columns:
    """What a network measures, for people.

    Args:
        spaces: heading of the distance in each space; the first one is the benchmark's.
        scores: heading of each score; the first one is the benchmark's.
        lower_is_better: scores that are better when they are lower.
    """

    spaces: Mapping[str, str]
    scores: Mapping[str, str]
    lower_is_better: frozenset[str] = field(default_factory=frozenset)

    @property
    def space(self) -> str:
        return next(iter(self.spaces))

    @property
    def score(self) -> str | None:
        return next(iter(self.scores), None)


class ClipNetwork(Protocol):
    """`name` is a folder; `digest` changes with the weights and the preprocessing."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def columns(self) -> Columns: ...

    def of_clip(self, frames: Frames, prompt: str) -> ClipFeatures: ...

    def real(self, prompts: Sequence[Prompt]) -> RealSet:
        """Raises BenchmarkError if the real clips, or their features, are missing."""
        ...
