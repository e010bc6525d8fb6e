from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.errors import StorageError
from service.storage import FileStorage
from tests.processes import wait_for
from worker.child.checkpoint_upload import CheckpointWriter

KEY = "checkpoints/video_1.safetensors"


@dataclass
class State:
    name: str

    def write(self, path: Path) -> None:
        path.write_text(self.name)


class Slow(FileStorage):
    """A storage that takes a file only when it is let."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.let = threading.Event()

    def put(self, path: Path, *, key: str, media_type: str, sha256: str) -> None:
        assert self.let.wait(20)
        super().put(path, key=key, media_type=media_type, sha256=sha256)


class Broken(FileStorage):
    def put(self, path: Path, *, key: str, media_type: str, sha256: str) -> None:
        raise StorageError("down")

    def size(self, key: str) -> int | None:
        raise StorageError("down")


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Slow]:
    slow = Slow(tmp_path / "storage")
    yield slow
    slow.let.set()


def stored_state(storage: FileStorage, tmp_path: Path) -> str | None:
    file = CheckpointWriter(storage, KEY, every_s=60).fetch(tmp_path)
    return file.read_text() if file else None


def test_nothing_is_saved_before_its_time_and_nothing_is_there(storage: Slow, tmp_path: Path) -> None:
    storage.let.set()
    checkpoint_writer = CheckpointWriter(storage, KEY, every_s=60)
    checkpoint_writer.offer(State("1"))
    checkpoint_writer.close()
    assert stored_state(storage, tmp_path) is None


def test_latest_state_is_saved_when_the_work_stops(storage: Slow, tmp_path: Path) -> None:
    storage.let.set()
    checkpoint_writer = CheckpointWriter(storage, KEY, every_s=60)
    for name in ("1", "2", "3"):
        checkpoint_writer.offer(State(name))
    checkpoint_writer.close(save_latest=True)
    assert stored_state(storage, tmp_path) == "3"


def test_states_that_come_while_one_is_on_its_way_do_not_wait(storage: Slow, tmp_path: Path) -> None:
    checkpoint_writer = CheckpointWriter(storage, KEY, every_s=0)
    began = time.monotonic()
    for name in map(str, range(100)):
        checkpoint_writer.offer(State(name))
    assert time.monotonic() - began < 2
    storage.let.set()
    wait_for(lambda: stored_state(storage, tmp_path), timeout_s=10)
    checkpoint_writer.close(save_latest=True)
    assert stored_state(storage, tmp_path) == "99"


def test_stop_waits_a_limited_time_for_a_storage_that_hangs(storage: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.child.checkpoint_upload.SAVE_S", 0.1)
    checkpoint_writer = CheckpointWriter(storage, KEY, every_s=0)
    checkpoint_writer.offer(State("1"))
    began = time.monotonic()
    checkpoint_writer.close(save_latest=True)
    assert time.monotonic() - began < 5


def test_storage_that_fails_costs_nothing_but_the_state(tmp_path: Path) -> None:
    checkpoint_writer = CheckpointWriter(Broken(tmp_path), KEY, every_s=0)
    checkpoint_writer.offer(State("1"))
    checkpoint_writer.close(save_latest=True)
    assert checkpoint_writer.fetch(tmp_path) is None
