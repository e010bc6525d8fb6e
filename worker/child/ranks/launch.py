"""Starts the process of a further rank. Loads no torch."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.connection import Connection

PROGRAM = "worker.child.ranks"


def launch(store: int) -> tuple[Connection, subprocess.Popen[bytes]]:
    """A process that waits for orders from the pipe, and ends when this one or its pipe does.

    To be called in the main thread, see `end_with_parent`.

    Args:
        store: descriptor for the process group.
    """
    ours, theirs = multiprocessing.Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", PROGRAM, str(theirs.fileno()), str(store), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), store),
        )
    return ours, process
