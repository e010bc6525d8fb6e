"""The files of references: stored before the record of their job, and deleted with it.

An API process can end between the two. Therefore the job's id is noted first, and `sweep` deletes the files of noted
jobs that never came to be. A job that has a video did: Redis has lost its record, which `ivmix recover` rebuilds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from service.errors import StorageError
from service.jobs.keys import job_key
from service.jobs.reference import Reference
from service.redis_scripts import UntypedRedis
from service.storage import object_keys
from service.storage.base import VideoStorage

log = logging.getLogger("ivmix.storage")

NOTED = "ivm:references"  # sorted set: ids of jobs that are being created with a reference, by unix time
SWEPT_AFTER_S = 3600.0  # longer than any request
BATCH = 100


class ReferenceFiles:
    """
    Args:
        now: unix time.
    """

    def __init__(self, redis: Redis, storage: VideoStorage, *, now: Callable[[], float] = time.time) -> None:
        self._redis: UntypedRedis = redis
        self._storage, self._now = storage, now

    def put(self, job_id: str, path: Path, reference: Reference) -> None:
        """Store the file of a job that will be created. Raises StorageError."""
        self._redis.zadd(NOTED, {job_id: self._now()})
        key = object_keys.reference(job_id)
        self._storage.put(path, key=key, media_type=reference.media_type, sha256=reference.sha256)

    def created(self, job_id: str) -> None:
        """The job has a record; from now on the file is deleted with it."""
        with suppress(RedisError):  # then `sweep` sees the record
            self._redis.zrem(NOTED, job_id)

    def discard(self, job_id: str) -> None:
        """The job was not created."""
        try:
            self._storage.delete(object_keys.reference(job_id))
            self._redis.zrem(NOTED, job_id)
        except (StorageError, RedisError) as e:  # `sweep` does it
            log.warning("%s: cannot delete its reference yet: %s", job_id, type(e).__name__)

    def sweep(self) -> int:
        """Delete the files of jobs that were noted long ago and have neither record nor video. Returns how many. Raises
        StorageError.

        At most `BATCH` jobs are looked at; the others have their turn next time.
        """
        latest = self._now() - SWEPT_AFTER_S
        removed = 0
        for member in self._redis.zrange(NOTED, "-inf", latest, byscore=True, offset=0, num=BATCH):
            job_id = member.decode()
            if not self._redis.exists(job_key(job_id)) and not self._has_video(job_id):
                self._storage.delete(object_keys.reference(job_id))
                removed += 1
                log.info("%s was not created: its reference is deleted", job_id)
            self._redis.zrem(NOTED, job_id)
        return removed

    def _has_video(self, job_id: str) -> bool:
        return any(True for _ in self._storage.list(object_keys.videos(job_id)))
