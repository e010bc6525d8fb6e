"""A webhook dispatcher in a thread of the test, with the services of the test."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

from service.webhook_dispatcher.dispatcher import run
from service.wiring import Services


@contextmanager
def dispatching(services: Services) -> Generator[None]:
    stopping = threading.Event()
    thread = threading.Thread(target=run, args=(services, stopping), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(60)
        assert not thread.is_alive(), "the dispatcher did not stop"
