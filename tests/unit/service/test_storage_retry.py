from __future__ import annotations

import pytest

from service.errors import PermanentStorageError, StorageError
from service.storage.retry import ON_WAIT_EVERY_S, StorageRetry


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.time = 0.0
        self.sleeps: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.time += seconds


class Storage:
    """Unavailable until `back_at`."""

    def __init__(self, clock: Clock, back_at: float) -> None:
        self._clock, self._back_at = clock, back_at
        self.tries: list[float] = []

    def put(self) -> str:
        self.tries.append(self._clock.now())
        if self._clock.now() < self._back_at:
            raise StorageError("unavailable")
        return "stored"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_an_outage_of_minutes_is_survived(clock: Clock) -> None:
    storage = Storage(clock, back_at=300)
    assert StorageRetry(600, clock.now, clock.sleep).call(storage.put) == "stored"
    assert 300 <= clock.now() <= 330
    gaps = [later - earlier for earlier, later in zip(storage.tries, storage.tries[1:], strict=False)]
    assert gaps[0] <= 0.5
    assert 15 <= max(gaps) <= 30
    assert len(gaps) < 30  # backoff limits the load


def test_the_last_error_is_raised_when_the_budget_is_used_up(clock: Clock) -> None:
    with pytest.raises(StorageError, match="unavailable"):
        StorageRetry(600, clock.now, clock.sleep).call(Storage(clock, back_at=10_000).put)
    assert 560 <= clock.now() <= 600


def test_permanent_error_is_not_retried(clock: Clock) -> None:
    def put() -> None:
        raise PermanentStorageError("changed")

    with pytest.raises(PermanentStorageError):
        StorageRetry(600, clock.now, clock.sleep).call(put)
    assert clock.now() == 0


def test_on_wait_is_called_often_and_may_end_the_waiting(clock: Clock) -> None:
    calls: list[float] = []

    def on_wait() -> None:
        calls.append(clock.now())
        if clock.now() > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        StorageRetry(600, clock.now, clock.sleep).call(Storage(clock, back_at=10_000).put, on_wait=on_wait)
    assert max(clock.sleeps) <= ON_WAIT_EVERY_S
    assert clock.now() <= 40 + 2 * ON_WAIT_EVERY_S
