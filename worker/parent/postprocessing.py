"""The parent's second thread: monitors one job that is decoded and stored while the networks sample the next.

One at a time, in sampling order, so that jobs are completed in the order they were dequeued.
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
        """Exceptions of `finish` are logged: the lease of the job expires, and maintenance requeues it."""
        assert self.is_free(0.0), "one at a time"

        def run() -> None:
            try:
                finish()
            except Exception:
                log.exception("a job was not finished")

        self._thread = threading.Thread(target=run, name="finishing")
        self._thread.start()

    def is_free(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` for the current job."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    def close(self) -> None:
        """Wait for the current job, however long: a stopping job has a time limit already."""
        while not self.is_free(1.0):
            pass
