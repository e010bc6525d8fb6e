"""A pytest plugin for `make soak`: skips the tests that would start later than STOP_AFTER_S after the session began."""

from __future__ import annotations

import os
import time

import pytest

DEADLINE = time.monotonic() + float(os.environ["STOP_AFTER_S"])


def pytest_runtest_setup() -> None:
    if time.monotonic() > DEADLINE:
        pytest.skip("no time left in this soak")
