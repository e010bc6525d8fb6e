"""The record of every job in Redis: the truth that the API shows and the workers race for.

A record is a hash `ivm:job:{id}` whose values are JSON, one per field of `Job`; fields that are None are left out or
null. The index `ivm:jobs` holds all ids with one score, so ids sort by themselves, that is by age. Every change is one
script that first compares state and execution id, so a worker that lost its job (a zombie) changes nothing. The moves
of a worker may be said twice with the same answer, because a reply can get lost and the client library asks again.

A running job has a lease, `ivm:lease:{id}`: the execution's id, kept by beats and dropped by Redis' own clock. Its loss
decides nothing yet; whoever finds it gone (reaper) asks for the job by the same compare-and-set as everybody.
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
from service.queues import generate_queue, queue_key, recorded_generate, send_generate

INDEX = "ivm:jobs"
ACTIVE = "ivm:active"  # ids of the jobs that have not ended; those that have stay until the maintenance sees them

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

# KEYS: record, lease. ARGV: queued, running, execution, now, lease in ms.
_START = """
local state, execution = unpack(redis.call('HMGET', KEYS[1], 'state', 'execution_id'))
if state == ARGV[1] then
  redis.call('HSET', KEYS[1], 'state', ARGV[2], 'execution_id', ARGV[3])
  redis.call('HSETNX', KEYS[1], 'started_at', ARGV[4])
  redis.call('HINCRBY', KEYS[1], 'attempt', 1)
elseif not (state == ARGV[2] and execution == ARGV[3]) then
  return 0
end
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[5])
return 1
"""

# KEYS: record, lease. ARGV: running, execution, lease in ms (0: leave it), and for progress step, total, phase. A
# resumed job may repeat a step, but never shows it.
_BEAT = """
local record = redis.call('HMGET', KEYS[1], 'state', 'execution_id', 'step', 'cancel_requested')
local state, execution, step, cancel = unpack(record)
if state ~= ARGV[1] or execution ~= ARGV[2] then return 'lost' end
if ARGV[3] ~= '0' then redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3]) end
if #ARGV > 3 then
  step = math.max(tonumber(step), tonumber(ARGV[4]))
  redis.call('HSET', KEYS[1], 'step', step, 'total_steps', ARGV[5], 'phase', ARGV[6])
end
return cancel == 'true' and 'cancel' or 'continue'
"""

# KEYS: record, lease. ARGV: running, execution, queued, change of the attempts, whether a lease that is held protects
# the job (1, 0), then RQ's commands, each with its length in front.
_REQUEUE = """
local state, execution, cancel = unpack(redis.call('HMGET', KEYS[1], 'state', 'execution_id', 'cancel_requested'))
if state ~= ARGV[1] or execution ~= ARGV[2] then return 'lost' end
if ARGV[5] == '1' and redis.call('EXISTS', KEYS[2]) == 1 then return 'held' end
if cancel == 'true' then return 'cancel' end
redis.call('HSET', KEYS[1], 'state', ARGV[3], 'execution_id', 'null', 'phase', 'null')
redis.call('HINCRBY', KEYS[1], 'attempt', ARGV[4])
redis.call('DEL', KEYS[2])
local i = 6
while i <= #ARGV do
  local length = tonumber(ARGV[i])
  redis.call(unpack(ARGV, i + 1, i + length))
  i = i + length + 1
end
return 'queued'
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


class Verdict(StrEnum):
    """What a worker is told when it reports progress."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    LOST = "lost"  # the job belongs to somebody else or has ended: stop, and write nothing


class JobStore:
    def __init__(self, redis: Redis, *, retention_seconds: float = 7 * 86400, lease_s: float = 45) -> None:
        self._redis: Any = redis  # redis-py's types name every reply a command could have in any mode
        self._retention_seconds = retention_seconds
        self._lease_ms = int(lease_s * 1000)
        self._move_script = self._redis.register_script(_MOVE)
        self._start_script = self._redis.register_script(_START)
        self._beat_script = self._redis.register_script(_BEAT)
        self._requeue_script = self._redis.register_script(_REQUEUE)
        self._cancel_script = self._redis.register_script(_CANCEL)
        self._delete_script = self._redis.register_script(_DELETE)

    def create(self, job: Job, queue: Queue) -> Job:
        """Record, index and RQ job in one transaction: a job that was accepted is a job that will be worked on."""
        with self._redis.pipeline(transaction=True) as pipe:
            send_generate(queue, job.id, pipeline=pipe)  # first, because RQ opens the MULTI
            pipe.hset(job_key(job.id), mapping=_encode(job.model_dump(mode="json", exclude_none=True)))
            pipe.zadd(INDEX, {job.id: 0})
            pipe.sadd(ACTIVE, job.id)
            pipe.execute()
        return job

    def get(self, job_id: str) -> Job | None:
        return _decode(self._redis.hgetall(job_key(job_id)))

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

    def start(self, job_id: str, execution_id: str) -> Job | None:
        """Take a queued job, with a lease on it. None if it does not wait (any more)."""
        args = [*map(json.dumps, (JobState.QUEUED, JobState.RUNNING, execution_id, time.time())), self._lease_ms]
        return self.get(job_id) if self._start_script([job_key(job_id), lease_key(job_id)], args) else None

    def ask(self, job_id: str, execution_id: str) -> Verdict:
        """Writes nothing."""
        return self._beat(job_id, execution_id, 0)

    def beat(self, job_id: str, execution_id: str) -> Verdict:
        """Renew the lease."""
        return self._beat(job_id, execution_id, self._lease_ms)

    def progress(self, job_id: str, execution_id: str, step: int, total_steps: int, phase: Phase | str) -> Verdict:
        """A beat that has something to tell."""
        return self._beat(job_id, execution_id, self._lease_ms, *map(json.dumps, (step, total_steps, Phase(phase))))

    def _beat(self, job_id: str, execution_id: str, lease_ms: int, *progress: str) -> Verdict:
        args = [json.dumps(JobState.RUNNING), json.dumps(execution_id), lease_ms, *progress]
        return Verdict(self._beat_script([job_key(job_id), lease_key(job_id)], args).decode())

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

    def requeue(self, job: Job, execution_id: str, *, charged: bool = True, unless_held: bool = False) -> bool:
        """Back to the front of its queue, record and RQ job in one step; False if it was not this execution's.

        A drain is not charged as an attempt. unless_held: not while somebody has a lease on the job. A job that was
        asked to stop ends cancelled instead.
        """
        queue = generate_queue(self._redis, job.generation.model)
        sent = [part for c in recorded_generate(queue, job.id, at_front=True) for part in (len(c), *c)]
        states = [*map(json.dumps, (JobState.RUNNING, execution_id, JobState.QUEUED))]
        args = [*states, 0 if charged else -1, int(unless_held), *sent]
        answer = self._requeue_script([job_key(job.id), lease_key(job.id)], args)
        if answer == b"cancel":
            self.finish_cancel(job.id, execution_id)
        return answer == b"queued"

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
        *,
        already: JobState | None = None,
    ) -> bool:
        commands = [("HSET", name, value) for name, value in fields.items()]
        flat = [part for name, field, value in commands for part in (name, field, json.dumps(value))]
        owner = "" if execution_id is None else json.dumps(execution_id)
        done = json.dumps(already) if already and owner else ""
        return bool(self._move_script([job_key(job_id)], [_one_of(sources), owner, done, *flat]))


def job_key(job_id: str) -> str:
    return f"ivm:job:{job_id}"


def lease_key(job_id: str) -> str:
    return f"ivm:lease:{job_id}"


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
