"""Who may use the autoencoder: one clip is decoded in the background while the next job's picture is encoded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

POLL_S = 0.5  # how often a thread that waits for its turn reports, and checks for a stop


class AutoencoderTurns:
    """One thread at a time: autoencoders of clips keep state between calls, and one that overflows is float32 for a
    while."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._decoded: tuple[float, float | None] = (0.0, None)  # seconds of ended decodings, start of the current one

    @property
    def decoded_s(self) -> float:
        """Seconds that decoding has taken until now, in this process."""
        seconds, began = self._decoded
        return seconds if began is None else seconds + time.perf_counter() - began

    @contextmanager
    def encoding(self, on_wait: Callable[[], object]) -> Generator[None]:
        """`on_wait` is called twice a second while another thread has its turn. An exception from it ends the wait."""
        while not self._lock.acquire(timeout=POLL_S):
            on_wait()
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def decoding(self, on_wait: Callable[[], object]) -> Generator[None]:
        """As `encoding`; the time counts as decoding."""
        with self.encoding(on_wait):
            self._decoded = (self.decoded_s, time.perf_counter())
            try:
                yield
            finally:
                self._decoded = (self.decoded_s, None)
