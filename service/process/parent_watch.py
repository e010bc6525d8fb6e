"""Noticing that the process that started us is gone, however suddenly. Knows nothing of what anybody does."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

SUPERVISOR = "IVMIX_SUPERVISOR"  # its process id, set by the supervisor for what it starts
LOOK_EVERY_S = 0.5


def watch_parent(parent: int, on_gone: Callable[[], object]) -> None:
    """Call `on_gone` once, in a thread, when the process `parent`, which started us, has ended.

    The id is the caller's to know: it may have ended before we get to ask for it.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY_S)
        on_gone()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def end_with_supervisor() -> None:
    """Stop as on SIGTERM when a supervisor started us and is gone. Started by hand, a process lives on its own."""
    if supervisor := os.environ.get(SUPERVISOR):
        watch_parent(int(supervisor), lambda: os.kill(os.getpid(), signal.SIGTERM))
