"""Several videos of one request: all the same but for their seeds."""

from __future__ import annotations

from service.jobs.model import Generation
from service.jobs.request import MAX_SEED


def generations_of(first: Generation, count: int) -> list[Generation]:
    """`count` that differ in the seed only: each has that of the one before, plus 1."""
    seeds = ((first.seed + number) % (MAX_SEED + 1) for number in range(count))
    return [first.model_copy(update={"seed": seed}) for seed in seeds]
