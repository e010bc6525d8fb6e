"""RQ's own books, kept in order in one place. Knows RQ; nothing of our jobs.

Stock workers do this between jobs, by their own clocks, under a lock that one of them can take into its grave for a
quarter of an hour.
"""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any

from redis import Redis
from rq.scheduler import RQScheduler
from rq.worker_registration import clean_worker_registry

from service.jobs.rq_queues import all_queues

FORGOTTEN_S = 3600.0  # an execution that has not been heard of for so long is nobody's


class RqHousekeeping:
    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # redis-py's types name every reply a command could have in any mode
        self._name = uuid.uuid4().hex
        self._names: list[str] = []
        self._scheduler: RQScheduler | None = None

    def enqueue_scheduled(self) -> None:
        """Jobs that were enqueued for a time that has come. In this process: RQ's way is a fork of a worker."""
        names = sorted(queue.name for queue in all_queues(self._redis))
        if self._scheduler is None or names != self._names:
            self._names = names
            self._scheduler = RQScheduler(
                names,
                connection=self._redis,
                serializer="json",
                logging_level=logging.WARNING,
                name=self._name,  # the same for another list of queues: it holds their locks
            )
        self._scheduler.acquire_locks()
        self._scheduler.enqueue_scheduled_jobs()

    def clean(self) -> None:
        """Entries of workers that were killed; who has which job is decided by leases, not by these."""
        for queue in all_queues(self._redis):
            clean_worker_registry(queue)
            self._redis.zremrangebyscore(queue.started_job_registry.key, 0, time.time() - FORGOTTEN_S)
