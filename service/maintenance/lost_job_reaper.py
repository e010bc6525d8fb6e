"""Finds accepted jobs that nobody has any more, and brings them back: running ones without a lease, waiting ones that
are not in their queue. Reads the record and the queues; knows nothing of workers.

What is seen missing once may be on its way; it has to stay missing for a while. So an outage of Redis costs no job that
its worker still has: workers renew their leases as soon as Redis is back.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from redis import Redis
from redis.exceptions import RedisError

from service.jobs.keys import ACTIVE, job_key, lease_key
from service.jobs.model import Job, JobError, JobState
from service.jobs.rq_queues import all_queues, generate_queue, is_generate_queue, recorded_generate
from service.jobs.store import JobStore
from service.maintenance.retention import Retention

log = logging.getLogger("ivmix.maintenance")

LOST = JobError(code="worker_lost", message="The worker process died several times on this job.")
DAMAGED = JobError(code="internal_error", message="The record of this job is damaged; the server's log says how.")

# KEYS: record, queue, its list of jobs between taking and starting. ARGV: queued, id, then RQ's commands, each with its
# length in front. A job that a killed worker had taken is in the third list for ever.
_SEND_AGAIN = """
if redis.call('HGET', KEYS[1], 'state') ~= ARGV[1] then return 0 end
if redis.call('LPOS', KEYS[2], ARGV[2]) then return 0 end
redis.call('LREM', KEYS[3], 0, ARGV[2])
local i = 3
while i <= #ARGV do
  local length = tonumber(ARGV[i])
  redis.call(unpack(ARGV, i + 1, i + length))
  i = i + length + 1
end
return 1
"""


class OrphanedJob(NamedTuple):
    """A job that nobody has, as it was seen; what has moved since is another one."""

    job_id: str
    state: JobState
    execution_id: str | None


class LostJobReaper:
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
        self._redis: Any = redis  # redis-py's types name every reply a command could have in any mode
        self._store, self._retention = store, retention
        self._grace_s, self._max_attempts, self._clock = grace_s, max_attempts, clock
        self._since: dict[OrphanedJob, float] = {}
        self._send_again_script = self._redis.register_script(_SEND_AGAIN)

    def look(self) -> None:
        """Bring back what has been missing for `grace_s`. Safe to run twice at a time."""
        try:
            strays = self._strays()
            now = self._clock()
            self._since = {stray: self._since.get(stray, now) for stray in strays}
            for stray in [stray for stray, since in self._since.items() if now - since >= self._grace_s]:
                self._bring_back(stray)
        except RedisError:
            # Workers saw the outage too, and need time to say that they are there; also after one in which Redis could
            # be read and not written (full).
            self._since.clear()
            raise

    def _strays(self) -> list[OrphanedJob]:
        waiting = self._waiting()
        ids = [member.decode() for member in self._redis.smembers(ACTIVE)]
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hmget(job_key(job_id), "state", "execution_id", "start_by")
                pipe.exists(lease_key(job_id))
            answers = pipe.execute()
        strays: list[OrphanedJob] = []
        for job_id, (state, execution_id, start_by), is_held in zip(ids, answers[::2], answers[1::2], strict=True):
            stray = OrphanedJob(job_id, _state(state), _name(execution_id))
            if state is None or stray.state.is_terminal:
                self._retention.begin(job_id)
            elif stray.state is JobState.QUEUED and _is_past(start_by):
                self._give_up(job_id)
            elif not (is_held if stray.state is JobState.RUNNING else job_id in waiting):
                strays.append(stray)
        return strays

    def _waiting(self) -> set[str]:
        """The ids in all queues."""
        queues = [queue for queue in all_queues(self._redis) if is_generate_queue(queue.name)]
        return {job_id for queue in queues for job_id in queue.job_ids}

    def _give_up(self, job_id: str) -> None:
        """A job that waited longer than its client wanted to, whether or not anybody asks for it."""
        with suppress(ValueError):  # a record that cannot be read is seen again, as a stray
            job = self._store.get(job_id)
            if job is not None and self._store.fail_if_overdue(job):
                log.warning("%s failed: no worker was free in time", job_id)

    def _bring_back(self, stray: OrphanedJob) -> None:
        try:
            job = self._store.get(stray.job_id)
        except ValueError:
            log.exception("the record of %s cannot be read", stray.job_id)
            if not self._store.fail(stray.job_id, None, DAMAGED):
                self._redis.srem(ACTIVE, stray.job_id)  # there is no way on from the state it says
            return
        if job is None or (job.state, job.execution_id) != stray[1:]:
            return
        if stray.execution_id is None:
            if self._send_again(job):
                log.warning("%s was in no queue; sent again", job.id)
        elif job.attempt >= self._max_attempts and not job.cancel_requested:
            if self._store.fail(job.id, stray.execution_id, LOST):
                log.error("%s failed: its worker was lost, attempt %d", job.id, job.attempt)
        elif self._store.requeue(job, stray.execution_id, unless_leased=True):
            log.warning("%s goes back to the queue: its worker was lost, attempt %d", job.id, job.attempt)

    def _send_again(self, job: Job) -> bool:
        queue = generate_queue(self._redis, job.generation.model)
        keys = [job_key(job.id), queue.key, queue.intermediate_queue_key]
        commands: Iterable[tuple[Any, ...]] = recorded_generate(queue, job.id, at_front=True)
        sent = [part for command in commands for part in (len(command), *command)]
        return bool(self._send_again_script(keys, [json.dumps(JobState.QUEUED), job.id, *sent]))


def _is_past(start_by: bytes | None) -> bool:
    try:
        return time.time() > json.loads(start_by or b"null")
    except (ValueError, TypeError):  # none was said
        return False


def _name(value: bytes | None) -> str | None:
    """Of an execution; what cannot be read is one that nobody has."""
    try:
        name = json.loads(value or b"null")
    except ValueError:
        name = value
    return name if name is None or isinstance(name, str) else repr(name)


def _state(value: bytes | None) -> JobState:
    """What cannot be read is taken for waiting, so that it is looked at more closely."""
    try:
        return JobState(json.loads(value or b""))
    except ValueError:
        return JobState.QUEUED
