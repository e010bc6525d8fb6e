"""Cleans up after ended jobs: leftover files at once, record and files together when the job expires.

The record is deleted first, because a record without its file would promise a video that is gone. The job stays in the
list of ended jobs until all its files are deleted. Nothing here scans the storage, so videos whose records Redis lost
stay available to `ivmix recover`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import PurePosixPath

from redis import Redis

from service.errors import StorageError
from service.jobs.job_record import DamagedJob
from service.jobs.keys import ACTIVE, ENDED
from service.jobs.model import Job
from service.jobs.store import JobStore
from service.redis_scripts import UntypedRedis
from service.storage import VideoStorage
from service.storage.manifest import delete_all_files, delete_files

log = logging.getLogger("ivmix.maintenance")

BATCH = 100
RETRY_S = 60.0  # after a storage error


class Retention:
    """Cleans up ended jobs; several instances may run at the same time.

    Args:
        retention_s: lifetime of jobs whose record has no expiry time, in seconds after their end.
        tidy_after_s: delay of the first clean-up, in which workers notice that their job has ended.
        now: unix time.
    """

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
        self._redis: UntypedRedis = redis
        self._store, self._storage = store, storage
        self._retention_s, self._tidy_after_s, self._now = retention_s, tidy_after_s, now

    def take_over(self, job_id: str) -> None:
        """Move an ended job from the active jobs to the ended ones."""
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.zadd(ENDED, {job_id: self._now() + self._tidy_after_s}, nx=True)
            pipe.srem(ACTIVE, job_id)
            pipe.execute()

    def run_once(self) -> None:
        """Clean up every job that is due."""
        while due := self._redis.zrange(ENDED, "-inf", self._now(), byscore=True, offset=0, num=BATCH):
            for member in due:
                try:
                    self._clean_up(member.decode())
                except StorageError as e:
                    log.error("%s: deleting files failed, next attempt in %.0f s: %s", member.decode(), RETRY_S, e)
                    self._redis.zadd(ENDED, {member: self._now() + RETRY_S})

    def _clean_up(self, job_id: str) -> None:
        job = self._store.view_any(job_id)
        expires_at = 0.0 if job is None else self._expires_at(job)
        if expires_at > self._now():
            if not isinstance(job, DamagedJob):  # whose files it cannot tell apart
                delete_files(self._storage, job_id, keep=_winner(job))
            self._redis.zadd(ENDED, {job_id: expires_at}, xx=True)
            return
        if self._store.delete(job_id, only_ended=True) is not None:
            log.info("%s expired", job_id)
        delete_all_files(self._storage, job_id)
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.zrem(ENDED, job_id)
            pipe.srem(ACTIVE, job_id)  # its clean-up is over
            pipe.execute()

    def _expires_at(self, job: Job) -> float:
        return job.expires_at or (job.completed_at or job.created_at) + self._retention_s


def _winner(job: Job | None) -> str | None:
    """Return the folder of the execution that completed the job; other executions wrote into other folders."""
    return f"{PurePosixPath(job.output.key).parent}/" if job is not None and job.output is not None else None
