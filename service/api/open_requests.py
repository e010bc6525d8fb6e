"""Limit on long-lived requests (event streams, create-and-wait), and their end on shutdown."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from threading import Event, Lock

from service.errors import RateLimited


class OpenRequests:
    def __init__(self, limit: int) -> None:
        self.stopping = Event()  # set on shutdown; long-lived requests check it
        self._limit, self._count, self._lock = limit, 0, Lock()

    def acquire(self) -> None:
        """Raises RateLimited if too many are open; pairs with `release`."""
        with self._lock:
            if self._count >= self._limit:
                message = f"Too many open streaming requests (limit {self._limit}). Poll the status instead."
                raise RateLimited(message, 10)
            self._count += 1

    def release(self) -> None:
        with self._lock:
            self._count -= 1

    @contextmanager
    def slot(self) -> Generator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()
