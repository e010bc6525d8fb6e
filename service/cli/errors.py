"""Error output of commands: one line for errors that the user can correct, a traceback for all others."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

from service.cli.client import RequestError, VideoFailedError
from service.process.startup import one_sentence_errors


@contextmanager
def user_errors() -> Generator[None]:
    with one_sentence_errors():
        try:
            yield
        except (RequestError, VideoFailedError) as e:
            sys.exit(f"ivmix: {e}")
