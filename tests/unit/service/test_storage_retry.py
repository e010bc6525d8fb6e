from __future__ import annotations

import pytest

from service.errors import PermanentStorageError, StorageError
from service.storage.retry import ON_WAIT_EVERY_S, StorageRetry


class Clock:
    """Time passes by sleeping only."""

    def __init__(self) -> None:
        self.time = 0.0
        self.sleeps: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.time += seconds


class Storage:
    """Away until `back_at`, then it answers."""

    def __init__(self, clock: Clock, back_at: float) -> None:
        self._clock, self._back_at = clock, back_at
        self.tries: list[float] = []

    def put(self) -> str:
        self.tries.append(self._clock.now())
        if self._clock.now() < self._back_at:
            raise StorageError("away")
        return "stored"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_minutes_of_outage_are_waited_out(clock: Clock) -> None:
    storage = Storage(clock, back_at=300)
    assert StorageRetry(600, clock.now, clock.sleep).call(storage.put) == "stored"
    assert 300 <= clock.now() <= 330
    gaps = [later - earlier for earlier, later in zip(storage.tries, storage.tries[1:], strict=False)]
    assert gaps[0] <= 0.5
    assert 15 <= max(gaps) <= 30
    assert len(gaps) < 30  # the server is not hammered


def test_budget_ends_the_waiting_with_the_storages_own_words(clock: Clock) -> None:
    with pytest.raises(StorageError, match="away"):
        StorageRetry(600, clock.now, clock.sleep).call(Storage(clock, back_at=10_000).put)
    assert 560 <= clock.now() <= 600


def test_broken_file_is_not_tried_again(clock: Clock) -> None:
    def put() -> None:
        raise PermanentStorageError("changed")

    with pytest.raises(PermanentStorageError):
        StorageRetry(600, clock.now, clock.sleep).call(put)
    assert clock.now() == 0


def test_who_waits_looks_up_often_and_may_leave(clock: Clock) -> None:
    looks: list[float] = []

    def look() -> None:
        looks.append(clock.now())
        if clock.now() > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        StorageRetry(600, clock.now, clock.sleep).call(Storage(clock, back_at=10_000).put, on_wait=look)
    assert max(clock.sleeps) <= ON_WAIT_EVERY_S
    assert clock.now() <= 40 + 2 * ON_WAIT_EVERY_S
