"""What happens to an ended job: its leftovers go at once, its record and its files go together when it expires.

The record goes first: a record without its file would promise a video that is gone, a file without its record is
found again, because the job stays in the list of ended ones until everything of it is gone. Nothing here scans the
storage, so videos whose records Redis lost stay where they are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

from redis import Redis

from service.errors import StorageError
from service.jobs.keys import ACTIVE
from service.jobs.model import Job
from service.jobs.store import JobStore
from service.storage import VideoStorage
from service.storage.manifest import delete_files

log = logging.getLogger("ivmix.maintenance")

ENDED = "ivm:ended"  # ids of ended jobs by the time they are to be looked after next
BATCH = 100
AGAIN_S = 60.0  # after the storage failed


class Retention:
    def __init__(
        self,
        redis: Redis,
        store: JobStore,
        storage: VideoStorage,
        *,
        retention_s: float,
        tidy_after_s: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._redis: Any = redis  # redis-py's types name every reply a command could have in any mode
        self._store, self._storage = store, storage
        self._retention_s, self._tidy_after_s, self._now = retention_s, tidy_after_s, now

    def begin(self, job_id: str) -> None:
        """Take over a job that has ended; its workers get a while to notice."""
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.zadd(ENDED, {job_id: self._now() + self._tidy_after_s}, nx=True)
            pipe.srem(ACTIVE, job_id)
            pipe.execute()

    def look(self) -> None:
        """Look after every job whose time has come. Safe to run twice at a time."""
        while due := self._redis.zrange(ENDED, "-inf", self._now(), byscore=True, offset=0, num=BATCH):
            for member in due:
                try:
                    self._look_after(member.decode())
                except StorageError as e:
                    log.error("%s: leftovers stay for now: %s", member.decode(), e)
                    self._redis.zadd(ENDED, {member: self._now() + AGAIN_S}, xx=True)

    def _look_after(self, job_id: str) -> None:
        job = self._read(job_id)
        expires_at = 0.0 if job is None else self._expires_at(job)
        if expires_at > self._now():
            delete_files(self._storage, job_id, keep=_winner(job))
            self._redis.zadd(ENDED, {job_id: expires_at}, xx=True)
            return
        with suppress(ValueError):  # of a record that cannot be read: it is gone all the same
            if self._store.delete(job_id) is not None:
                log.info("%s expired", job_id)
        delete_files(self._storage, job_id)
        self._redis.zrem(ENDED, job_id)

    def _read(self, job_id: str) -> Job | None:
        try:
            return self._store.get(job_id)
        except ValueError:
            log.exception("the record of %s cannot be read", job_id)
            return None

    def _expires_at(self, job: Job) -> float:
        return job.expires_at or (job.completed_at or job.created_at) + self._retention_s


def _winner(job: Job | None) -> str | None:
    """The folder that the record points into; executions that lost wrote into others."""
    return f"{PurePosixPath(job.output.key).parent}/" if job is not None and job.output is not None else None
