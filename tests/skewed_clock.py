"""A clock that is wrong, for a process of its own. Monotonic time, and what C asks for, stay right."""

from __future__ import annotations

import os
import time

CLOCK = "FAKE_CLOCK_S"


def set_clock_wrong() -> None:
    """By FAKE_CLOCK_S seconds, for every `time.time()` of this process from now on."""
    if wrong_by := float(os.environ.get(CLOCK, "0")):
        right = time.time
        time.time = lambda: right() + wrong_by
