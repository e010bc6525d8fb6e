"""Everything at once, for about two minutes: every promise of the checker, under one fault of most kinds.

For longer: `python -m tests.faults --jobs 500 --faults 100 --seed 1`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from tests.faults.nemesis import KINDS, draw
from tests.faults.report import show
from tests.faults.run import Run
from tests.swift import SwiftServer

JOBS, FAULTS, SEED = 40, 16, 5


def test_same_seed_brings_the_same_faults() -> None:
    assert draw(3, 200) == draw(3, 200)
    assert [planned.kind for planned in draw(3, 200)] != [planned.kind for planned in draw(4, 200)]


def test_every_kind_of_fault_comes_equally_often() -> None:
    kinds = [planned.kind for planned in draw(1, 3 * len(KINDS))]
    assert {kind: kinds.count(kind) for kind in KINDS} == dict.fromkeys(KINDS, 3)


@pytest.mark.timeout(600)
def test_nothing_that_was_promised_is_broken(swift_server: SwiftServer, tmp_path: Path) -> None:
    lines, violations = Run(tmp_path / "run", JOBS, FAULTS, SEED).against(swift_server)
    show(lines, violations, Console(width=110))  # shown by pytest if it fails
    assert violations == []
    struck = [line for line in lines if (line["who"], line["what"]) == ("nemesis", "fault")]
    assert len(struck) >= FAULTS - 3, "else this has shown little"
    assert any(line["what"] == "quiet" for line in lines)
