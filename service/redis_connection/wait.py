"""Waits for an absent server at the start of a process, with one log line a minute."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from service.errors import ConfigurationError, ServiceUnavailable
from service.redis_connection.check import RedisAway, check_redis

log = logging.getLogger("ivmix.redis")

RETRY_S = 1.0
LOG_EVERY_S = 60.0


def wait_for_redis(url: str, stopping: threading.Event, on_wait: Callable[[], object] = lambda: None) -> None:
    """Return when the server can be used, or `stopping` is set.

    Args:
        on_wait: called about once a second meanwhile.

    Raises:
        ConfigurationError: the server refuses us.
    """
    logged_at = -LOG_EVERY_S
    while not stopping.is_set():
        on_wait()
        try:
            check_redis(url)
        except RedisAway as e:
            if time.monotonic() - logged_at >= LOG_EVERY_S:
                logged_at = time.monotonic()
                log.warning("waiting for Redis: %s", e)
            stopping.wait(RETRY_S)
        else:
            if logged_at > 0:
                log.info("Redis is there")
            return


def require_not_refused(url: str) -> None:
    """Raises ConfigurationError if the server is there and refuses us. An absent server is no error."""
    with suppress(RedisAway):
        check_redis(url)


def watch_redis(url: str, on_refusal: Callable[[ConfigurationError], object]) -> None:
    """Like `wait_for_redis`, but does not block while the server is absent: then a thread waits.

    Args:
        on_refusal: called in that thread when a server appears and refuses us.

    Raises:
        ConfigurationError: the server is there and refuses us.
    """
    try:
        return check_redis(url)
    except RedisAway:
        pass

    def watch() -> None:
        try:
            wait_for_redis(url, threading.Event())
        except ConfigurationError as e:
            on_refusal(e)

    threading.Thread(target=watch, name="redis-watch", daemon=True).start()


def require_redis(url: str, *, patience_s: float = 5.0) -> None:
    """For commands that a person waits for: like `wait_for_redis`, but for a few seconds only.

    Raises:
        ConfigurationError: the server refuses us.
        ServiceUnavailable: no server answers.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return check_redis(url)
        except RedisAway as e:
            if time.monotonic() > deadline:
                raise ServiceUnavailable(f"{e}; Redis is unreachable: start it, or correct the address") from e
        time.sleep(RETRY_S / 2)
