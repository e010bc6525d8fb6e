"""How long a storage that is away is waited for: a clip took minutes of GPU time, so minutes are worth it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from service.errors import PermanentStorageError, StorageError

log = logging.getLogger("ivmix.storage")

T = TypeVar("T")

FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0
LOOK_S = 0.5  # how often somebody who waits looks up


@dataclass(frozen=True)
class StorageRetry:
    """Seconds without success, for each thing that is tried."""

    budget_s: float
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def call(self, act: Callable[[], T], *, on_wait: Callable[[], None] = lambda: None) -> T:
        """What `act` returns, tried until it raises no StorageError; raises the last one when the budget is used up.

        `on_wait` is called before every try and at least each LOOK_S between them; what it raises ends the waiting.
        """
        deadline = self.now() + self.budget_s
        for delay in _delays():
            on_wait()
            try:
                return act()
            except PermanentStorageError:
                raise
            except StorageError as e:
                if self.now() + delay > deadline:
                    raise
                log.warning("storage: %s; next try in %.1f s", e, delay)
            self._wait(delay, on_wait)
        raise AssertionError("the delays do not end")

    def _wait(self, seconds: float, on_wait: Callable[[], None]) -> None:
        end = self.now() + seconds
        while (left := end - self.now()) > 0:
            on_wait()
            self.sleep(min(LOOK_S, left))


def _delays() -> Iterator[float]:
    """Doubling, each between half and all of it by chance, so that not every worker comes back at once."""
    delay = FIRST_DELAY_S
    while True:
        yield delay * random.uniform(0.5, 1.0)  # noqa: S311  # no secret
        delay = min(2 * delay, LONGEST_DELAY_S)
