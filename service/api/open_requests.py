"""Requests that are answered over a long time. Bounded, and they end when the process is told to stop."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from threading import Event, Lock

from service.errors import RateLimited


class OpenRequests:
    def __init__(self, most: int) -> None:
        self.stopping = Event()  # set by whoever runs the server
        self._most, self._count, self._lock = most, 0, Lock()

    def enter(self) -> None:
        """Raises RateLimited if too many are open; pairs with `leave`."""
        with self._lock:
            if self._count >= self._most:
                raise RateLimited(f"This server holds {self._most} requests open already; poll instead.", 10)
            self._count += 1

    def leave(self) -> None:
        with self._lock:
            self._count -= 1

    @contextmanager
    def slot(self) -> Generator[None]:
        self.enter()
        try:
            yield
        finally:
            self.leave()
