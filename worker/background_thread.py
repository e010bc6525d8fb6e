"""One job's decoding and upload in a second thread while the networks sample the next; the parent monitors it the same
way. One at a time, in sampling order, so that jobs are completed in the order they were dequeued."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("ivmix.worker")


class BackgroundThread:
    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def begin(self, work: Callable[[], object]) -> None:
        """Exceptions of `work` are logged: the lease of the job expires, and maintenance requeues it."""
        assert self.is_free(0.0), "one at a time"

        def run() -> None:
            try:
                work()
            except Exception:
                log.exception("a job was not finished")

        self._thread = threading.Thread(target=run, name="postprocessing")
        self._thread.start()

    def is_free(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` for the current work."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    def close(self) -> None:
        """Wait for the current work, however long: a stopping job has a time limit already."""
        if self._thread is not None:
            self._thread.join()
