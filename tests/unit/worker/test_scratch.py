from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from worker.scratch import KEEP_S, Scratch


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path / "scratch")


def fill(scratch: Scratch, job_id: str, execution_id: str) -> Path:
    folder = scratch.open(job_id, execution_id)
    (folder / "video.mp4").write_text(f"of {execution_id}")
    return folder


def test_what_was_finished_is_there_for_the_next_execution(scratch: Scratch) -> None:
    scratch.finish(fill(scratch, "j", "e1"))
    folder = scratch.claim("j", "e2")
    assert folder is not None
    assert (folder / "video.mp4").read_text() == "of e1"
    assert scratch.claim("other", "e3") is None


def test_what_was_not_finished_is_of_no_use(scratch: Scratch) -> None:
    fill(scratch, "j", "e1")
    assert scratch.claim("j", "e2") is None


def test_there_is_only_ever_one_of_it(scratch: Scratch, tmp_path: Path) -> None:
    """Each of the racing executions gets all files or none; the owner of the job may take them from a zombie."""
    scratch.finish(fill(scratch, "j", "e0"))
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda i: scratch.claim("j", f"e{i}"), range(1, 9)))
    assert any(claimed)
    (last,) = (tmp_path / "scratch" / "j").iterdir()
    assert last in claimed
    assert (last / "video.mp4").read_text() == "of e0"


def test_discarding_leaves_nothing_but_the_others(scratch: Scratch, tmp_path: Path) -> None:
    for execution in ("e1", "e2"):
        fill(scratch, "j", execution)
    scratch.discard("j", "e1")
    assert [path.name for path in (tmp_path / "scratch" / "j").iterdir()] == ["e2"]
    scratch.discard("j", "e2")
    scratch.discard("j", "e2")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_an_execution_starts_with_an_empty_folder(scratch: Scratch) -> None:
    scratch.finish(fill(scratch, "j", "e1"))
    assert list(scratch.open("j", "e1").iterdir()) == []


def test_unclaimed_files_are_removed_when_the_next_worker_starts(scratch: Scratch, tmp_path: Path) -> None:
    for job in ("old", "young"):
        scratch.finish(fill(scratch, job, "e1"))
    past = time.time() - KEEP_S - 60
    os.utime(tmp_path / "scratch" / "old" / "e1", (past, past))
    scratch.open("new", "e1")
    assert sorted(path.name for path in (tmp_path / "scratch").iterdir()) == ["new", "young"]


def test_other_people_cannot_look_into_it(scratch: Scratch) -> None:
    assert scratch.open("j", "e1").stat().st_mode & 0o077 == 0
