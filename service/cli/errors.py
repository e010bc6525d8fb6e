"""Error output of commands: one line for errors that the user can correct, a traceback for all others."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def user_errors() -> Generator[None]:
    try:
        yield
    except Exception as e:
        # Only now: the classes of errors load Redis and HTTP clients, which `--help` must not wait for.
        from service.cli.client import RequestError, VideoFailedError
        from service.process.startup import one_sentence_errors

        if isinstance(e, RequestError | VideoFailedError):
            sys.exit(f"ivmix: {e}")
        with one_sentence_errors():
            raise
