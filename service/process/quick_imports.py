"""Imports of large packages in two thirds of the time.

While modules are created almost nothing becomes garbage, but the collector looks for it hundreds of times, through all
that earlier imports have created.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Generator[None]:
    """Switch the garbage collector off. What exists at the end is never looked through again, at exit neither."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
