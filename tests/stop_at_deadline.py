"""A pytest plugin for `make soak`: skips the tests that would start later than STOP_AFTER_S after the session began.

The files come in an order that RESUME_SEED decides, so that it is not always the same tests that are skipped.
"""

from __future__ import annotations

import os
import random
import time

import pytest

DEADLINE = time.monotonic() + float(os.environ["STOP_AFTER_S"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    files = sorted({item.path for item in items})
    random.Random(os.environ.get("RESUME_SEED")).shuffle(files)
    place = {file: number for number, file in enumerate(files)}
    items.sort(key=lambda item: place[item.path])


def pytest_runtest_setup() -> None:
    if time.monotonic() > DEADLINE:
        pytest.skip("no time left in this soak")
