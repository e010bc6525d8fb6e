"""Everything at once, for about a minute: every promise of the checker, under one fault of most kinds.

For longer: `python -m tests.faults --jobs 500 --faults 100 --seed 1`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from tests.faults.fault_kinds import KINDS, WITH_SENTINELS
from tests.faults.nemesis import draw
from tests.faults.report import show
from tests.faults.run import Run
from tests.swift import SwiftServer

JOBS, FAULTS, SEED = 12, 8, 5


def test_same_seed_draws_the_same_faults() -> None:
    assert draw(3, 200) == draw(3, 200)
    assert [planned.kind for planned in draw(3, 200)] != [planned.kind for planned in draw(4, 200)]


def test_every_kind_of_fault_is_drawn_equally_often() -> None:
    kinds = [planned.kind for planned in draw(1, 3 * len(KINDS))]
    assert {kind: kinds.count(kind) for kind in KINDS} == dict.fromkeys(KINDS, 3)


@pytest.mark.timeout(600)
def test_every_promise_is_kept(swift_server: SwiftServer, tmp_path: Path) -> None:
    lines, violations = Run(tmp_path / "run", JOBS, FAULTS, SEED).against(swift_server)
    show(lines, violations, Console(width=110))  # pytest prints it if the test fails
    assert violations == []
    injected = [line for line in lines if (line["who"], line["what"]) == ("nemesis", "fault")]
    assert len(injected) >= FAULTS - 3, "too few faults found something to break"
    assert any(line["what"] == "quiet" for line in lines)
    assert any(line["what"] == "commit" for line in lines), "no commit found in the workers' logs: see COMMITTED"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_promise_is_kept_when_primaries_are_killed(swift_server: SwiftServer, tmp_path: Path) -> None:
    kinds = ("primary killed", "kill -9 parent", "kill -9 API", "kill -9 maintenance", "kill -9 dispatcher", "SIGTERM")
    assert set(kinds) < set(WITH_SENTINELS)
    run = Run(tmp_path / "run", 40, 2 * len(kinds), SEED, kinds, uses_sentinels=True)
    lines, violations = run.against(swift_server)
    show(lines, violations, Console(width=110))
    assert violations == []
    killed = [line for line in lines if line["what"] == "repaired" and line["kind"] == "primary killed"]
    assert len(killed) == 2
    assert any(line["what"] == "quiet" for line in lines)
