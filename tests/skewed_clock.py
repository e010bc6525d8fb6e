"""Shifts a process's wall clock. The monotonic clock and time read by C code stay right."""

from __future__ import annotations

import os
import time

CLOCK = "FAKE_CLOCK_S"


def skew_clock() -> None:
    """From now on, `time.time()` in this process is off by FAKE_CLOCK_S seconds."""
    if offset_s := float(os.environ.get(CLOCK, "0")):
        right = time.time
        time.time = lambda: right() + offset_s
