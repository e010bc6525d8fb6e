"""Retries storage operations while the storage is unavailable: a clip takes minutes of GPU time, so minutes of waiting
are cheaper than sampling it again."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from service.errors import PermanentStorageError, StorageError

log = logging.getLogger("ivmix.storage")

T = TypeVar("T")

FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0
ON_WAIT_EVERY_S = 0.5


@dataclass(frozen=True)
class StorageRetry:
    """Exponential backoff, for at most `budget_s` seconds per call."""

    budget_s: float
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def call(self, operation: Callable[[], T], *, on_wait: Callable[[], None] = lambda: None) -> T:
        """Repeat `operation` until it succeeds.

        Args:
            on_wait: Called before every attempt and at least every ON_WAIT_EVERY_S between them. An exception that it
                raises ends the waiting and is passed on.

        Raises:
            PermanentStorageError: at once.
            StorageError: the last one, when the budget is used up.
        """
        deadline, backoff = self.now() + self.budget_s, FIRST_DELAY_S
        while True:
            on_wait()
            try:
                return operation()
            except PermanentStorageError:
                raise
            except StorageError as e:
                # Jitter, so that all workers do not return at the same moment.
                delay = backoff * random.uniform(0.5, 1.0)  # noqa: S311  # not for security
                if self.now() + delay > deadline:
                    raise
                log.warning("storage unavailable: %s; retrying in %.1f s", e, delay)
            self._wait(delay, on_wait)
            backoff = min(2 * backoff, LONGEST_DELAY_S)

    def _wait(self, seconds: float, on_wait: Callable[[], None]) -> None:
        end = self.now() + seconds
        while (left := end - self.now()) > 0:
            on_wait()
            self.sleep(min(ON_WAIT_EVERY_S, left))
