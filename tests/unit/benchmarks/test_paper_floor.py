"""The floor of a table: other real clips where there are any, else a reason, and never a filled cell."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.paper.measure import floor
from benchmarks.paper.networks import Array, Columns, RealSet
from benchmarks.paper.protocols import protocol

COLUMNS = Columns({"umt": "UMT-FVD"}, {})


def real(n: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((n, 1, 4))


def floor_of(reference: Array, others: Array | None) -> dict[str, object]:
    found = RealSet({"umt": reference}, None if others is None else {"umt": others}, "test")
    return floor(found, protocol("chronomagic-150"), COLUMNS)["umt"]


def test_other_real_clips_make_the_floor() -> None:
    found = floor_of(real(20), real(50, 1))
    assert isinstance(found["value"], float)
    assert (found["n"], found["reason"]) == (20, None)


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        (None, "there are no other real clips; two halves of them, 10 clips each, are "),
        (real(19, 1), "the floor at n = 20 needs as many real clips that are not in the reference, but there are 19"),
    ],
)
def test_too_few_real_clips_leave_it_unknown(others: Array | None, reason: str) -> None:
    found = floor_of(real(20), others)
    assert (found["value"], found["spread"], found["n"]) == (None, None, 20)
    assert str(found["reason"]).startswith(reason)


def test_few_clips_have_no_halves() -> None:
    assert floor_of(real(7), None)["reason"] == "there are no other real clips"
