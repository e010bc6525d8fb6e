"""The parent's other hand: one job whose steps are done is decoded and stored while the networks have the next one.

One at a time, in the order of their sampling, so that jobs are committed in the order they were taken.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("ivmix.worker")


class PostprocessingThread:
    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def begin(self, finish: Callable[[], None]) -> None:
        """What `finish` raises ends in the log: the lease of its job runs out, and the maintenance brings it back."""
        assert self.is_free(0.0), "one at a time"

        def run() -> None:
            try:
                finish()
            except Exception:
                log.exception("a job was not finished")

        self._thread = threading.Thread(target=run, name="finishing")
        self._thread.start()

    def is_free(self, timeout_s: float) -> bool:
        """Waits so long for it."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    def close(self) -> None:
        """Until it is over: a job that is told to stop has its own limits."""
        while not self.is_free(1.0):
            pass
