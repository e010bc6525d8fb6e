"""`ivmix maintenance`: what has to be done by somebody, once: lost jobs brought back, ended ones looked after.

Any number of these processes may run; one leads, and another takes over within seconds. Every duty has its own thread,
so that a storage that hangs does not keep lost jobs waiting, and is safe to run twice at a time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.exceptions import LockError, RedisError

from service.process.heartbeat_file import HeartbeatFile

log = logging.getLogger("ivmix.maintenance")

LEADER = "ivm:maintenance"
LEADS_S = 15.0  # how long a leader that was killed stands in the way of the next
RENEW_S = 5.0
NO_HEARTBEAT_FILE = HeartbeatFile()


@dataclass(frozen=True)
class Duty:
    name: str
    every_s: float
    do: Callable[[], object]


class Maintenance:
    def __init__(
        self,
        redis: Redis,
        duties: Sequence[Duty],
        heartbeat_file: HeartbeatFile = NO_HEARTBEAT_FILE,
        *,
        leads_s: float = LEADS_S,
        renew_s: float = RENEW_S,
    ) -> None:
        self._redis, self._duties, self._heartbeat_file = redis, duties, heartbeat_file
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
            self._heartbeat_file.beat()
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
