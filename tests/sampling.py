"""The mark `sample(n)` of costly cases of one kind: n of them run in `make test`, the others are marked `slow`."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable

import pytest


def mark_unsampled(items: Iterable[pytest.Item]) -> None:
    """Mark as `slow` all but n cases of each test that is marked `sample(n)`.

    The checksum of its id decides whether a case runs: a new case does not exchange all the others.
    """
    cases: dict[str, list[tuple[pytest.Item, int]]] = defaultdict(list)
    for item in items:
        mark = item.get_closest_marker("sample")
        if mark is not None and item.get_closest_marker("slow") is None:
            cases[item.nodeid.partition("[")[0]].append((item, mark.args[0]))
    for sampled in cases.values():
        drawn = sorted(sampled, key=lambda case: zlib.crc32(case[0].nodeid.encode()))
        for item, _ in drawn[drawn[0][1] :]:
            item.add_marker(pytest.mark.slow)
