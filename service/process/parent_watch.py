"""Detects the death of the parent process, however sudden."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable

SUPERVISOR = "IVMIX_SUPERVISOR"  # environment variable: the supervisor's process id, set for its children
POLL_S = 0.5
PR_SET_PDEATHSIG = 1


def watch_parent(parent: int, on_exit: Callable[[], object]) -> None:
    """Call `on_exit` once, in a background thread, after the parent process has exited.

    Args:
        parent: The parent's process id. The caller passes it because the parent may exit before this function could
            ask for it.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        on_exit()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def end_with_supervisor() -> None:
    """Send SIGTERM to this process when its supervisor exits. Does nothing in a process without a supervisor."""
    if supervisor := os.environ.get(SUPERVISOR):
        watch_parent(int(supervisor), lambda: os.kill(os.getpid(), signal.SIGTERM))


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the parent ends, even while this one is stopped or hangs in a driver.

    Args:
        parent: The parent's process id. What counts is the end of its thread that started this process, which should
            therefore be the main one.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(71)
