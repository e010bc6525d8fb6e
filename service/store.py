"""The record of every job in Redis: the truth that the API shows and the workers race for.

A record is a hash `ivm:job:{id}` whose values are JSON, one per field of `Job`; fields that are None are left out or
null. The index `ivm:jobs` holds all ids with one score, so ids sort by themselves, that is by age. Every change is one
script that first compares state and execution id, so a worker that lost its job (a zombie) changes nothing. The moves
of a worker may be said twice with the same answer, because a reply can get lost and the client library asks again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

from redis import Redis
from rq import Queue
from rq.job import Job as RqJob

from service.jobs import LEGAL, Job, JobError, JobState, Output, Phase
from service.queues import queue_key, send_generate

INDEX = "ivm:jobs"

Page = tuple[list[Job], bool]

# KEYS: record. ARGV: states it may be in (|state|state|), execution it must belong to ("" = any), state that means the
# same execution did this already ("" = none), then commands as (name, field, value).
_MOVE = """
local state, execution = unpack(redis.call('HMGET', KEYS[1], 'state', 'execution_id'))
if not state then return 0 end
local owned = ARGV[2] == '' or execution == ARGV[2]
if owned and state == ARGV[3] then return 1 end
if not (owned and string.find(ARGV[1], '|' .. state .. '|', 1, true)) then return 0 end
for i = 4, #ARGV, 3 do redis.call(ARGV[i], KEYS[1], ARGV[i + 1], ARGV[i + 2]) end
return 1
"""

# KEYS: record. ARGV: running, execution, step, total, phase. A resumed job may repeat a step, but never shows it.
_PROGRESS = """
local record = redis.call('HMGET', KEYS[1], 'state', 'execution_id', 'step', 'cancel_requested')
local state, execution, step, cancel = unpack(record)
if state ~= ARGV[1] or execution ~= ARGV[2] then return 'lost' end
step = math.max(tonumber(step), tonumber(ARGV[3]))
redis.call('HSET', KEYS[1], 'step', step, 'total_steps', ARGV[4], 'phase', ARGV[5])
return cancel == 'true' and 'cancel' or 'continue'
"""

# KEYS: record, queue, RQ's record. ARGV: id, queued, running, cancelled, now.
_CANCEL = """
local state = redis.call('HGET', KEYS[1], 'state')
if state == ARGV[2] then
  redis.call('HSET', KEYS[1], 'state', ARGV[4], 'completed_at', ARGV[5], 'cancel_requested', 'true')
  if redis.call('LREM', KEYS[2], 1, ARGV[1]) == 1 then redis.call('DEL', KEYS[3]) end
elseif state == ARGV[3] then
  redis.call('HSET', KEYS[1], 'cancel_requested', 'true')
end
return redis.call('HGETALL', KEYS[1])
"""

# KEYS: record, index. ARGV: id, states it may be in (|state|state|).
_DELETE = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state or not string.find(ARGV[2], '|' .. state .. '|', 1, true) then return {} end
local record = redis.call('HGETALL', KEYS[1])
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return record
"""


# KEYS: record, index. ARGV: id, then the record's fields and values.
_RESTORE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('ZADD', KEYS[2], 0, ARGV[1])
return 1
"""


class Verdict(StrEnum):
    """What a worker is told when it reports progress."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    LOST = "lost"  # the job belongs to somebody else or has ended: stop, and write nothing


class JobStore:
    def __init__(self, redis: Redis, *, retention_seconds: float = 7 * 86400) -> None:
        self._redis: Any = redis  # redis-py's types name every reply a command could have in any mode
        self._retention_seconds = retention_seconds
        self._move_script = self._redis.register_script(_MOVE)
        self._progress_script = self._redis.register_script(_PROGRESS)
        self._cancel_script = self._redis.register_script(_CANCEL)
        self._delete_script = self._redis.register_script(_DELETE)
        self._restore_script = self._redis.register_script(_RESTORE)

    def create(self, job: Job, queue: Queue) -> Job:
        """Record, index and RQ job in one transaction: a job that was accepted is a job that will be worked on."""
        with self._redis.pipeline(transaction=True) as pipe:
            send_generate(queue, job.id, pipeline=pipe)  # first, because RQ opens the MULTI
            pipe.hset(job_key(job.id), mapping=_encode(job.model_dump(mode="json", exclude_none=True)))
            pipe.zadd(INDEX, {job.id: 0})
            pipe.execute()
        return job

    def get(self, job_id: str) -> Job | None:
        return _decode(self._redis.hgetall(job_key(job_id)))

    def exists(self, job_id: str) -> bool:
        """Also for a record that cannot be read."""
        return bool(self._redis.exists(job_key(job_id)))

    def restore(self, job: Job) -> bool:
        """Write the record of an ended job anew; False if there is one, which is left as it is."""
        record = _encode(job.model_dump(mode="json", exclude_none=True))
        flat = [part for pair in record.items() for part in pair]
        return bool(self._restore_script([job_key(job.id), INDEX], [job.id, *flat]))

    def list(self, *, limit: int = 20, order: Literal["asc", "desc"] = "desc", after: str | None = None) -> Page:
        """One page and whether more follow. `after` is an id, which need not exist any more."""
        newest_first = order == "desc"
        start = f"({after}" if after else ("+" if newest_first else "-")
        end = "-" if newest_first else "+"
        ids = self._redis.zrange(INDEX, start, end, desc=newest_first, bylex=True, offset=0, num=limit + 1)
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids[:limit]:
                pipe.hgetall(job_key(job_id.decode()))
            records = pipe.execute()
        # A record may go between the two reads.
        return [job for record in records if (job := _decode(record))], len(ids) > limit

    def start(self, job_id: str, execution_id: str, *, take_over: str | None = None) -> Job | None:
        """Take a queued job, or one that runs under the dead execution `take_over`. None if there is none."""
        fields = {"state": JobState.RUNNING, "execution_id": execution_id}
        more = (("HSETNX", "started_at", time.time()), ("HINCRBY", "attempt", 1))
        started = (
            self._move(job_id, {JobState.QUEUED}, None, fields, *more)
            or self._move(job_id, {JobState.RUNNING}, execution_id, {})  # said twice
            or (take_over is not None and self._move(job_id, {JobState.RUNNING}, take_over, fields, *more))
        )
        return self.get(job_id) if started else None

    def progress(self, job_id: str, execution_id: str, step: int, total_steps: int, phase: Phase | str) -> Verdict:
        args = [json.dumps(value) for value in (JobState.RUNNING, execution_id, step, total_steps, Phase(phase))]
        return Verdict(self._progress_script([job_key(job_id)], args).decode())

    def complete(
        self,
        job_id: str,
        execution_id: str,
        output: Output,
        timings: Mapping[str, float],
        peak_memory_mb: float | None,
    ) -> bool:
        """The files must be in the storage before this is said."""
        now = time.time()
        fields = {
            "completed_at": now,
            "expires_at": now + self._retention_seconds,
            "output": output.model_dump(mode="json"),
            "timings": dict(timings),
            "peak_memory_mb": peak_memory_mb,
        }
        return self._end(job_id, execution_id, JobState.COMPLETED, fields)

    def fail(self, job_id: str, execution_id: str | None, error: JobError) -> bool:
        """Without an execution id whoever has the job loses it."""
        fields = {"completed_at": time.time(), "error": error.model_dump()}
        return self._end(job_id, execution_id, JobState.FAILED, fields)

    def requeue(self, job_id: str, execution_id: str) -> bool:
        """Back to the queue, after a drain or a crash. Changes the record only; sending is for the worker to do."""
        fields = {"state": JobState.QUEUED, "execution_id": None, "phase": None}
        return self._move(job_id, {JobState.RUNNING}, execution_id, fields)

    def cancel(self, job_id: str) -> Job | None:
        """A queued job is cancelled at once, a running one is asked to stop; an ended one stays as it is."""
        job = self.get(job_id)
        if job is None:
            return None
        keys = [job_key(job_id), queue_key(job.generation.model), RqJob.key_for(job_id)]
        states = (JobState.QUEUED, JobState.RUNNING, JobState.CANCELLED)
        args = [job_id, *map(json.dumps, states), json.dumps(time.time())]
        return _decode(_pairs(self._cancel_script(keys, args)))

    def finish_cancel(self, job_id: str, execution_id: str) -> bool:
        return self._end(job_id, execution_id, JobState.CANCELLED, {"completed_at": time.time()})

    def delete(self, job_id: str) -> Job | None:
        """Record and index of an ended job; returns what it was. None if there was none or it has not ended."""
        ended = {state for state in JobState if state.is_terminal}
        return _decode(_pairs(self._delete_script([job_key(job_id), INDEX], [job_id, _one_of(ended)])))

    def queue_position(self, job: Job) -> int | None:
        """How many jobs are ahead; None when the job does not wait (any more)."""
        if job.state is not JobState.QUEUED:
            return None
        return self._redis.lpos(queue_key(job.generation.model), job.id)

    def _end(self, job_id: str, execution_id: str | None, state: JobState, fields: Mapping[str, Any]) -> bool:
        sources = {source for source, targets in LEGAL.items() if state in targets}
        if execution_id is not None:
            sources &= {JobState.RUNNING}
        return self._move(job_id, sources, execution_id, {**fields, "state": state, "phase": None}, already=state)

    def _move(
        self,
        job_id: str,
        sources: set[JobState],
        execution_id: str | None,
        fields: Mapping[str, Any],
        *more: tuple[str, str, Any],
        already: JobState | None = None,
    ) -> bool:
        commands = [("HSET", name, value) for name, value in fields.items()] + list(more)
        flat = [part for name, field, value in commands for part in (name, field, json.dumps(value))]
        owner = "" if execution_id is None else json.dumps(execution_id)
        done = json.dumps(already) if already and owner else ""
        return bool(self._move_script([job_key(job_id)], [_one_of(sources), owner, done, *flat]))


def job_key(job_id: str) -> str:
    return f"ivm:job:{job_id}"


def _one_of(states: set[JobState]) -> str:
    return f"|{'|'.join(map(json.dumps, states))}|"


def _encode(record: Mapping[str, Any]) -> dict[str, str]:
    return {field: json.dumps(value) for field, value in record.items()}


def _decode(record: Mapping[bytes, bytes]) -> Job | None:
    if not record:
        return None
    return Job.model_validate({field.decode(): json.loads(value) for field, value in record.items()})


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
