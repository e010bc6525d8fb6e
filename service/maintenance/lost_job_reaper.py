"""Requeues lost jobs: running ones without a lease, and queued ones that are in no queue.

A job must stay lost for a grace period before it is requeued. So an outage of Redis costs no job whose worker is alive,
because workers renew their leases as soon as Redis is back.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from service.jobs.job_errors import WORKER_LOST
from service.jobs.keys import ACTIVE, job_key, lease_key
from service.jobs.model import JobState
from service.jobs.rq_queues import all_queues, is_generate_queue
from service.jobs.store import JobStore
from service.maintenance.retention import Retention
from service.redis_scripts import UntypedRedis

log = logging.getLogger("ivmix.maintenance")


class OrphanedJob(NamedTuple):
    """A job without a worker, as it was seen. Once its state or execution changes, it is a different orphan."""

    job_id: str
    state: JobState
    execution_id: str | None


class LostJobReaper:
    """Finds orphaned jobs; several instances may run at the same time.

    Args:
        retention: takes over the ended jobs that the reaper finds.
        grace_s: seconds for which a job must be orphaned before it is requeued.
        max_attempts: executions after which a lost job fails instead.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        redis: Redis,
        store: JobStore,
        retention: Retention,
        *,
        grace_s: float,
        max_attempts: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis: UntypedRedis = redis
        self._store, self._retention = store, retention
        self._grace_s, self._max_attempts, self._clock = grace_s, max_attempts, clock
        self._orphaned_since: dict[OrphanedJob, float] = {}

    def run_once(self) -> None:
        """Requeue the jobs that have been orphaned for `grace_s`."""
        try:
            now = self._clock()
            self._orphaned_since = {orphan: self._orphaned_since.get(orphan, now) for orphan in self._find_orphans()}
            for orphan in [orphan for orphan, since in self._orphaned_since.items() if now - since >= self._grace_s]:
                self._recover(orphan)
        except RedisError:
            # Workers could not renew their leases either and get the whole grace period again. This also holds if
            # Redis could be read but not written (out of memory).
            self._orphaned_since.clear()
            raise

    def _find_orphans(self) -> list[OrphanedJob]:
        """Check all active jobs; hand ended ones to retention and fail overdue ones on the way."""
        queued_ids = self._queued_ids()
        ids = [member.decode() for member in self._redis.smembers(ACTIVE)]
        self._store.reindex(ids)  # what workers and API processes of older versions have changed
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hmget(job_key(job_id), "state", "execution_id", "start_by")
                pipe.exists(lease_key(job_id))
                pipe.exists(job_key(job_id))
            replies = pipe.execute(raise_on_error=False)
        orphans: list[OrphanedJob] = []
        for job_id, fields, has_lease, exists in zip(ids, replies[::3], replies[1::3], replies[2::3], strict=True):
            state, execution_id, start_by = _fields(fields)
            job = OrphanedJob(job_id, _decode_state(state), _decode_execution_id(execution_id))
            if not exists or job.state.is_terminal:
                self._retention.take_over(job_id)
            elif job.state is JobState.QUEUED and _is_past(start_by):
                self._fail_overdue(job_id)
            elif not (has_lease if job.state is JobState.RUNNING else job_id in queued_ids):
                orphans.append(job)
        return orphans

    def _queued_ids(self) -> set[str]:
        queues = [queue for queue in all_queues(self._redis) if is_generate_queue(queue.name)]
        return {job_id for queue in queues for job_id in queue.job_ids}

    def _fail_overdue(self, job_id: str) -> None:
        with suppress(ValueError):  # a damaged record becomes an orphan in a later run
            job = self._store.get(job_id)
            if job is not None and self._store.fail_if_overdue(job):
                log.warning("%s failed: no worker was free within start_timeout_s", job_id)

    def _recover(self, orphan: OrphanedJob) -> None:
        try:
            job = self._store.get(orphan.job_id)
        except ValueError:
            if self._store.fail_damaged(orphan.job_id):
                log.error("%s failed: its record is damaged", orphan.job_id)
            return
        if job is None or (job.state, job.execution_id) != (orphan.state, orphan.execution_id):
            return
        if orphan.execution_id is None:
            if self._store.send_again(job):
                log.warning("%s was in no queue; sent again", job.id)
        elif job.attempt >= self._max_attempts and not job.cancel_requested:
            if self._store.fail(job.id, orphan.execution_id, WORKER_LOST):
                log.error("%s failed: worker lost in attempt %d, the last one", job.id, job.attempt)
        elif self._store.requeue(job, orphan.execution_id, unless_leased=True):
            log.warning("%s requeued: worker lost in attempt %d", job.id, job.attempt)


def _fields(reply: Any) -> Sequence[bytes | None]:
    """Return the three fields; a key that is no hash has none of them."""
    if isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE"):
        return (None, None, None)
    if isinstance(reply, Exception):
        raise reply
    return reply


def _is_past(start_by: bytes | None) -> bool:
    try:
        return time.time() > json.loads(start_by or b"null")
    except (ValueError, TypeError, RecursionError):  # no start_timeout_s was given
        return False


def _decode_execution_id(value: bytes | None) -> str | None:
    """Return the id; a damaged value becomes an id that no execution has."""
    try:
        execution_id = json.loads(value or b"null")
    except (ValueError, RecursionError):
        execution_id = value
    return execution_id if execution_id is None or isinstance(execution_id, str) else repr(execution_id)


def _decode_state(value: bytes | None) -> JobState:
    """Return the state; a damaged value counts as queued, so that the job is checked more closely."""
    try:
        return JobState(json.loads(value or b""))
    except (ValueError, RecursionError):
        return JobState.QUEUED
