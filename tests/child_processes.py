"""Processes of tests end with them, also if pytest is killed with SIGKILL."""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable

from service.process.parent_watch import PR_SET_PDEATHSIG

LIBC = ctypes.CDLL(None)  # before a fork: loading it afterwards could block


def ends_with_tests() -> Callable[[], object] | None:
    """`preexec_fn` for subprocess: the kernel kills the process when this one ends.

    What counts is the end of the thread that starts it, so that only the main thread does this to its processes.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    return lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
