"""Runs periodic tasks in exactly one of any number of maintenance processes, elected by a lock in Redis."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.exceptions import LockError, RedisError

from service.log_config import ONCE_A_MINUTE
from service.process.heartbeat_file import HeartbeatFile

log = logging.getLogger("ivmix.maintenance")

LEADER = "ivm:maintenance"
LOCK_TTL_S = 15.0  # how long a killed leader blocks the next one
RENEW_S = 5.0
NO_HEARTBEAT_FILE = HeartbeatFile()


@dataclass(frozen=True)
class PeriodicTask:
    """`run` is called every `interval_s` seconds, and must tolerate two concurrent calls while the leader changes."""

    name: str
    interval_s: float
    run: Callable[[], object]


class MaintenanceLeader:
    """Runs the tasks while this process is the leader.

    Each task has its own thread, so that a storage that hangs does not delay the requeuing of lost jobs.
    """

    def __init__(
        self,
        redis: Redis,
        tasks: Sequence[PeriodicTask],
        heartbeat_file: HeartbeatFile = NO_HEARTBEAT_FILE,
        *,
        lock_ttl_s: float = LOCK_TTL_S,
        renew_s: float = RENEW_S,
    ) -> None:
        self._redis, self._tasks, self._heartbeat_file = redis, tasks, heartbeat_file
        self._lock_ttl_s, self._renew_s = lock_ttl_s, renew_s
        self._is_leading = threading.Event()

    def run(self, stopping: threading.Event) -> None:
        """Run until `stopping` is set; tasks in progress are finished."""
        threads = [
            threading.Thread(target=self._repeat, args=(task, stopping), name=task.name, daemon=True)
            for task in self._tasks
        ]
        for thread in threads:
            thread.start()
        lock: Any = self._redis.lock(LEADER, timeout=self._lock_ttl_s, thread_local=False)
        while not stopping.is_set():
            self._heartbeat_file.beat()
            self._campaign(lock)
            stopping.wait(self._renew_s)
        for thread in threads:
            thread.join(self._renew_s)
        if self._is_leading.is_set():
            with suppress(LockError, RedisError):
                lock.release()  # another process can lead at once

    def _campaign(self, lock: Any) -> None:  # Any: redis-py types its lock for sync and async at once
        was_leading = self._is_leading.is_set()
        try:
            is_leading = _renew(lock) or bool(lock.acquire(blocking=False))
        except RedisError as e:
            log.warning("cannot lead, Redis is unreachable: %s", type(e).__name__, extra=ONCE_A_MINUTE)
            is_leading = False
        if is_leading != was_leading:
            log.info("leading" if is_leading else "no longer leading")
        (self._is_leading.set if is_leading else self._is_leading.clear)()

    def _repeat(self, task: PeriodicTask, stopping: threading.Event) -> None:
        while not stopping.wait(task.interval_s):
            if not self._is_leading.is_set():
                continue
            try:
                task.run()
            except RedisError as e:
                log.error("%s: Redis failed: %s", task.name, type(e).__name__, extra=ONCE_A_MINUTE)
            except Exception:
                log.exception("%s failed; next attempt in %.0f s", task.name, task.interval_s)


def _renew(lock: Any) -> bool:
    """Renew the lock if this process holds it, or held it before an outage and no other process has taken it."""
    try:
        return bool(lock.reacquire())
    except LockError:
        return False
