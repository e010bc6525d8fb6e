"""`ivmix maintenance`: what has to be done by somebody, once: lost jobs brought back, ended ones looked after.

Any number of these processes may run; one leads, and another takes over within seconds. Every duty has its own thread,
so that a storage that hangs does not keep lost jobs waiting, and is safe to run twice at a time.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from redis import Redis
from redis.exceptions import LockError, RedisError

from service.books import Books
from service.errors import ServiceError
from service.lifeline import end_with_supervisor
from service.logs import configure_logs
from service.pulse import Pulse
from service.reaper import Reaper
from service.retention import Retention
from service.settings import load_settings
from service.wiring import Services, open_services

log = logging.getLogger("ivmix.maintenance")

LEADER = "ivm:maintenance"
LEADS_S = 15.0  # how long a leader that was killed stands in the way of the next
RENEW_S = 5.0
NO_PULSE = Pulse()


@dataclass(frozen=True)
class Duty:
    name: str
    every_s: float
    do: Callable[[], object]


def duties_of(services: Services) -> list[Duty]:
    """All of them, the only list there is."""
    settings = services.settings
    retention = Retention(
        services.redis,
        services.store,
        services.storage,
        retention_s=settings.retention_seconds,
        tidy_after_s=2 * settings.lease_s,
    )
    reaper = Reaper(
        services.redis,
        services.store,
        retention,
        # A lost worker is noticed within lease_s + beat_s. At least two seconds: after an outage of Redis a worker
        # comes back when its client library tries again.
        grace_s=max(settings.beat_s / 2, 2.0),
        max_attempts=settings.max_attempts,
    )
    books = Books(services.redis)
    return [
        Duty("lost jobs", settings.look_s, reaper.look),
        Duty("ended jobs", settings.look_s * 5, retention.look),
        Duty("uploads that were broken off", 3600.0, lambda: services.storage.clean(older_than_s=86400.0)),
        Duty("scheduled RQ jobs", 1.0, books.enqueue_scheduled),
        Duty("RQ's registries", 600.0, books.clean),
    ]


class Maintenance:
    def __init__(
        self,
        redis: Redis,
        duties: Sequence[Duty],
        pulse: Pulse = NO_PULSE,
        *,
        leads_s: float = LEADS_S,
        renew_s: float = RENEW_S,
    ) -> None:
        self._redis, self._duties, self._pulse = redis, duties, pulse
        self._leads_s, self._renew_s = leads_s, renew_s
        self._is_leading = threading.Event()

    def run(self, stopping: threading.Event) -> None:
        """Until `stopping`; a duty under way is finished."""
        threads = [
            threading.Thread(target=self._attend, args=(duty, stopping), name=duty.name) for duty in self._duties
        ]
        for thread in threads:
            thread.daemon = True
            thread.start()
        lock: Any = self._redis.lock(LEADER, timeout=self._leads_s, thread_local=False)
        while not stopping.is_set():
            self._pulse.beat()
            self._lead(lock)
            stopping.wait(self._renew_s)
        for thread in threads:
            thread.join(self._renew_s)
        if self._is_leading.is_set():
            with suppress(LockError, RedisError):
                lock.release()  # the next one need not wait

    def _lead(self, lock: Any) -> None:  # Any: redis-py types its lock for sync and async at once
        led = self._is_leading.is_set()
        try:
            leads = _renews(lock) or bool(lock.acquire(blocking=False))
        except RedisError as e:
            log.warning("not leading: %s", type(e).__name__)
            leads = False
        if leads != led:
            log.info("leading" if leads else "not leading any more")
        (self._is_leading.set if leads else self._is_leading.clear)()

    def _attend(self, duty: Duty, stopping: threading.Event) -> None:
        while not stopping.wait(duty.every_s):
            if not self._is_leading.is_set():
                continue
            try:
                duty.do()
            except RedisError as e:
                log.error("%s: Redis is away: %s", duty.name, type(e).__name__)
            except Exception:
                log.exception("%s failed; next try in %.0f s", duty.name, duty.every_s)


def _renews(lock: Any) -> bool:
    """Whether we had it, and have it for longer now; also after an outage, before which we did."""
    try:
        return bool(lock.reacquire())
    except LockError:  # it never was ours, or is not any more
        return False


def main() -> int:
    stopping = threading.Event()

    def ask_to_stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask_to_stop)
    end_with_supervisor()
    try:
        settings = load_settings()
        configure_logs(settings.log_format)
        services = open_services(settings)
        pulse = Pulse(settings.pulse_file)
    except ServiceError as e:
        sys.exit(f"ivmix: {e}")
    Maintenance(services.redis, duties_of(services), pulse).run(stopping)
    services.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
