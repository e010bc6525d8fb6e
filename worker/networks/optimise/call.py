"""What the parts of a network are told of the call under way; nothing of how they use it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

Texts = tuple[Tensor, ...]  # of each guidance half, (B, tokens, dim)


@dataclass
class Call:
    """Empty while the network is called plainly, by whoever else holds it: then every part does what it always did."""

    timestep: int | None = None
    has_twins: bool = False  # whether the second half of all rows repeats the first

    @contextmanager
    def under_way(self, timestep: int, texts: Texts) -> Generator[None]:
        self.timestep, self.has_twins = timestep, len(texts) == 2
        try:
            yield
        finally:
            self.timestep, self.has_twins = None, False
