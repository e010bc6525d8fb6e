"""The record of every job in Redis: the truth that the API shows and the workers race for.

A record is a hash `ivm:job:{id}` whose values are JSON, one per field of `Job`; fields that are None are left out or
null. The index `ivm:jobs` holds all ids with one score, so ids sort by themselves, that is by age; `ivm:jobs:{owner}`
those of one owner. Every change is one script that first compares state and execution id, so a worker that lost its job
(a zombie) changes nothing. Creating and the moves of a worker may be said twice with the same answer, because a reply
can get lost and the client library asks again. The scripts that end a job also put it into the outbox, if
somebody wants to hear of it (webhooks/outbox).

A running job has a lease, `ivm:lease:{id}`: the execution's id, kept by beats and dropped by Redis' own clock. Its loss
decides nothing yet; whoever finds it gone (reaper) asks for the job by the same compare-and-set as everybody.
"""

from __future__ import annotations

import builtins
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NoReturn

from redis import Redis
from rq import Queue
from rq.job import Job as RqJob

from service.errors import IdempotencyKeyReused, QueueFull
from service.jobs.model import LEGAL, Job, JobError, JobState, Output, Phase, Priority
from service.jobs.outbox import LISTENERS, OUTBOX, TELL, oldest_kept
from service.jobs.rq_queues import DELIVERED_TTL_S, generate_queue, queue_key, recorded_generate

log = logging.getLogger("ivmix.store")

INDEX = "ivm:jobs"
ACTIVE = "ivm:active"  # ids of the jobs that have not ended; those that have stay until the maintenance sees them
IDEMPOTENCY_S = 24 * 3600
SCANNED_AT_ONCE = 100
MOST_SCANNED = 5000
QUEUE_FULL_RETRY_S = 30  # a place gets free when a video is done, which takes about so long; the SDKs give up above 120

Order = Literal["asc", "desc"]
Page = tuple[list[Job], bool]
Shown = tuple[Job, int | None]

# KEYS: record, queue, index, index of the owner, its waiting jobs, idempotency record, active jobs. ARGV: prefix of
# records, id, fingerprint ("" = no idempotency key), its life in seconds, most that may wait, most of this owner,
# queued, low, number of the record's fields and values, these, then RQ's commands, each with its length in front.
# Stale members of the waiting set are dropped here, so that no other transition has to know it.
_CREATE = """
local prefix, id, fingerprint = ARGV[1], ARGV[2], ARGV[3]
if redis.call('EXISTS', KEYS[1]) == 1 then return {'created', id} end
if fingerprint ~= '' then
  local before, made = unpack(redis.call('HMGET', KEYS[6], 'fingerprint', 'id'))
  if before and redis.call('EXISTS', prefix .. made) == 1 then
    return {before == fingerprint and 'replayed' or 'reused', made}
  end
end
if redis.call('LLEN', KEYS[2]) >= tonumber(ARGV[5]) then return {'queue_full', ARGV[5]} end
for _, other in ipairs(redis.call('SMEMBERS', KEYS[5])) do
  if redis.call('HGET', prefix .. other, 'state') ~= ARGV[7] then redis.call('SREM', KEYS[5], other) end
end
if redis.call('SCARD', KEYS[5]) >= tonumber(ARGV[6]) then return {'owner_full', ARGV[6]} end

local fields = tonumber(ARGV[9])
redis.call('HSET', KEYS[1], unpack(ARGV, 10, 9 + fields))
redis.call('ZADD', KEYS[3], 0, id)
redis.call('ZADD', KEYS[4], 0, id)
redis.call('SADD', KEYS[5], id)
redis.call('SADD', KEYS[7], id)
if fingerprint ~= '' then
  redis.call('HSET', KEYS[6], 'fingerprint', fingerprint, 'id', id)
  redis.call('EXPIRE', KEYS[6], ARGV[4])
end
local i = 10 + fields
while i <= #ARGV do
  local length = tonumber(ARGV[i])
  redis.call(unpack(ARGV, i + 1, i + length))
  i = i + length + 1
end

if redis.call('HGET', KEYS[1], 'priority') ~= ARGV[8] then
  local before, place = nil, -2
  local other = redis.call('LINDEX', KEYS[2], place)
  while other and redis.call('HGET', prefix .. other, 'priority') == ARGV[8] do
    before, place = other, place - 1
    other = redis.call('LINDEX', KEYS[2], place)
  end
  if before then
    redis.call('RPOP', KEYS[2])
    redis.call('LINSERT', KEYS[2], 'BEFORE', before, id)
  end
end
return {'created', id}
"""

# KEYS: records. ARGV: prefix of queues, queued, the ids. Returns each record and how many are ahead, in one round trip.
# A record comes as one text: the values are JSON already, and a reply of fifty parts takes the client long to read.
_SHOW = """
local function show(key, id)
  local record = redis.call('HGETALL', key)
  if #record == 0 then return {} end
  local parts, state, generation = {}, nil, nil
  for i = 1, #record, 2 do
    local name, value = record[i], record[i + 1]
    parts[#parts + 1] = '"' .. name .. '":' .. value
    if name == 'state' then state = value elseif name == 'generation' then generation = value end
  end
  local text = '{' .. table.concat(parts, ',') .. '}'
  if state ~= ARGV[2] then return {text} end
  return {text, redis.call('LPOS', ARGV[1] .. cjson.decode(generation).model, id)}
end
local shown = {}
for i, key in ipairs(KEYS) do
  local is_sound, found = pcall(show, key, ARGV[i + 2])
  shown[i] = is_sound and found or {'damaged'}
end
return shown
"""

# KEYS: record, outbox, listeners. ARGV: states it may be in (|state|state|), execution it must belong to ("" = any),
# state that means the same execution did this already ("" = none), oldest news to keep ("" = this is no end and no
# news), then commands as (name, field, value).
_MOVE = (
    TELL
    + """
local state, execution = unpack(redis.call('HMGET', KEYS[1], 'state', 'execution_id'))
if not state then return 0 end
local owned = ARGV[2] == '' or execution == ARGV[2]
if owned and state == ARGV[3] then return 1 end
if not (owned and string.find(ARGV[1], '|' .. state .. '|', 1, true)) then return 0 end
for i = 5, #ARGV, 3 do redis.call(ARGV[i], KEYS[1], ARGV[i + 1], ARGV[i + 2]) end
if ARGV[4] ~= '' then tell(KEYS[1], KEYS[2], KEYS[3], ARGV[4]) end
return 1
"""
)

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

# KEYS: record, queue, RQ's record, outbox, listeners. ARGV: id, queued, running, cancelled, now, oldest news to keep.
_CANCEL = (
    TELL
    + """
local state = redis.call('HGET', KEYS[1], 'state')
if state == ARGV[2] then
  redis.call('HSET', KEYS[1], 'state', ARGV[4], 'completed_at', ARGV[5], 'cancel_requested', 'true')
  if redis.call('LREM', KEYS[2], 1, ARGV[1]) == 1 then redis.call('DEL', KEYS[3]) end
  tell(KEYS[1], KEYS[4], KEYS[5], ARGV[6])
elseif state == ARGV[3] then
  redis.call('HSET', KEYS[1], 'cancel_requested', 'true')
end
return redis.call('HGETALL', KEYS[1])
"""
)

# KEYS: record, index, RQ's entry. ARGV: id, states it may be in (|state|state|), prefix of the owners' indexes, how
# long RQ's entry stays: its worker may have been killed before it could say so.
_DELETE = """
local state, owner = unpack(redis.call('HMGET', KEYS[1], 'state', 'owner'))
if not state or not string.find(ARGV[2], '|' .. state .. '|', 1, true) then return {} end
local record = redis.call('HGETALL', KEYS[1])
redis.call('DEL', KEYS[1])
redis.call('EXPIRE', KEYS[3], ARGV[4])
redis.call('ZREM', KEYS[2], ARGV[1])
if owner then redis.call('ZREM', ARGV[3] .. cjson.decode(owner), ARGV[1]) end
return record
"""


# KEYS: record, index, index of the owner, active jobs (from where the maintenance takes what has ended). ARGV: id, then
# the record's fields and values.
_RESTORE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('ZADD', KEYS[2], 0, ARGV[1])
redis.call('ZADD', KEYS[3], 0, ARGV[1])
redis.call('SADD', KEYS[4], ARGV[1])
return 1
"""


class Verdict(StrEnum):
    """What a worker is told when it reports progress."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    LOST = "lost"  # the job belongs to somebody else or has ended: stop, and write nothing


@dataclass(frozen=True)
class Limits:
    """The most that may wait: in one queue, and of one owner."""

    queue: int
    owner: int


NO_LIMITS = Limits(queue=2**31, owner=2**31)


@dataclass(frozen=True)
class Idempotency:
    """The client's name for a request, and what the request was, in a form that two equal ones share."""

    key: str
    fingerprint: str


class JobStore:
    REMEMBERED = 50  # finished videos per model, for estimates

    def __init__(self, redis: Redis, *, retention_seconds: float = 7 * 86400, lease_s: float = 45) -> None:
        self._redis: Any = redis  # redis-py's types name every reply a command could have in any mode
        self._retention_seconds = retention_seconds
        self._lease_ms = int(lease_s * 1000)
        self._move_script = self._redis.register_script(_MOVE)
        self._start_script = self._redis.register_script(_START)
        self._beat_script = self._redis.register_script(_BEAT)
        self._requeue_script = self._redis.register_script(_REQUEUE)
        self._cancel_script = self._redis.register_script(_CANCEL)
        self._create_script = self._redis.register_script(_CREATE)
        self._show_script = self._redis.register_script(_SHOW)
        self._delete_script = self._redis.register_script(_DELETE)
        self._restore_script = self._redis.register_script(_RESTORE)

    def create(
        self, job: Job, queue: Queue, *, limits: Limits = NO_LIMITS, idempotency: Idempotency | None = None
    ) -> Job:
        """Record, indexes, idempotency and RQ job in one script: a job that was accepted will be worked on.

        Returns the job of the first such request if this one is a repetition. Raises QueueFull, IdempotencyKeyReused.
        """
        keys = [
            job_key(job.id),
            queue.key,
            INDEX,
            owner_index(job.owner),
            f"ivm:waiting:{job.owner}",
            idempotency_key(job.owner, idempotency.key) if idempotency else "ivm:idem:",
            ACTIVE,
        ]
        record = _encode(job.model_dump(mode="json", exclude_none=True))
        flat = [part for pair in record.items() for part in pair]
        sent = [part for command in recorded_generate(queue, job.id) for part in (len(command), *command)]
        asked = [idempotency.fingerprint if idempotency else "", IDEMPOTENCY_S, limits.queue, limits.owner]
        states = [json.dumps(JobState.QUEUED), json.dumps(Priority.LOW)]
        answer, what = self._create_script(keys, [job_key(""), job.id, *asked, *states, len(flat), *flat, *sent])
        match answer:
            case b"created":
                return job
            case b"replayed":
                return self.get(what.decode()) or job
            case _:
                _refuse(answer.decode(), int(what) if what.isdigit() else 0)

    def find_repeated(self, owner: str, idempotency: Idempotency) -> Job | None:
        """The job of an earlier request of this name. Raises IdempotencyKeyReused. `create` looks again."""
        fingerprint, made = self._redis.hmget(idempotency_key(owner, idempotency.key), "fingerprint", "id")
        job = None if made is None else self.get(made.decode())
        if job is not None and fingerprint.decode() != idempotency.fingerprint:
            raise IdempotencyKeyReused
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
        return bool(self._restore_script([job_key(job.id), INDEX, owner_index(job.owner), ACTIVE], [job.id, *flat]))

    def show(self, job_id: str) -> Shown | None:
        """The job and how many are ahead of it, None once it does not wait any more; one round trip.

        Raises ValueError for a record that cannot be read.
        """
        found = self.show_many([job_id])[0]
        if isinstance(found, ValueError):
            raise found
        return found

    def show_many(self, job_ids: Sequence[str]) -> builtins.list[Shown | ValueError | None]:
        """As `show`, still one round trip; a record that cannot be read is the trouble of its own client only."""
        args = [queue_key(""), json.dumps(JobState.QUEUED), *job_ids]
        return [_shown(*found) for found in self._show_script([job_key(job_id) for job_id in job_ids], args)]

    def list(
        self, *, limit: int = 20, order: Order = "desc", after: str | None = None, owner: str | None = None
    ) -> Page:
        """One page and whether more follow. `after` is an id, which need not exist any more; no owner means all."""
        newest_first = order == "desc"
        start = f"({after}" if after else ("+" if newest_first else "-")
        end = "-" if newest_first else "+"
        index = INDEX if owner is None else owner_index(owner)
        ids = self._redis.zrange(index, start, end, desc=newest_first, bylex=True, offset=0, num=limit + 1)
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids[:limit]:
                pipe.hgetall(job_key(job_id.decode()))
            records = pipe.execute()
        # A record may go between the two reads.
        return [job for record in records if (job := _decode_if_sound(record))], len(ids) > limit

    def search(
        self,
        wanted: Callable[[Job], bool],
        *,
        limit: int,
        order: Order = "desc",
        after: str | None = None,
        owner: str | None = None,
    ) -> tuple[builtins.list[Job], bool, str | None]:
        """One page of those that are wanted, whether more may follow, and the id to go on after.

        Looks at MOST_SCANNED records at most, so a rare find may take several pages.
        """
        found: builtins.list[Job] = []
        scanned = 0
        while scanned < MOST_SCANNED:
            page, more = self.list(limit=SCANNED_AT_ONCE, order=order, after=after, owner=owner)
            for job in page:
                if wanted(job):
                    if len(found) == limit:
                        return found, True, after
                    found.append(job)
                after = job.id
            scanned += len(page)
            if not more or not page:
                return found, False, after
        return found, True, after

    def start(self, job_id: str, execution_id: str) -> Job | None:
        """Take a queued job, with a lease on it. None if it does not wait (any more), or waited too long."""
        if (job := self.get(job_id)) is not None and self.give_up_overdue(job):
            return None
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

    def note_finished(self, model: str, seconds: float) -> None:
        """For the estimates only: said after `complete`, may get lost or be said twice."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.lpush(f"ivm:finished:{model}", json.dumps([time.time(), seconds]))
            pipe.ltrim(f"ivm:finished:{model}", 0, self.REMEMBERED - 1)
            pipe.execute()

    def finished_lately(self, model: str) -> builtins.list[tuple[float, float]]:
        """When the last videos of a model were finished, and how many seconds each took; newest first."""
        return [tuple(json.loads(entry)) for entry in self._redis.lrange(f"ivm:finished:{model}", 0, -1)]

    def fail(self, job_id: str, execution_id: str | None, error: JobError) -> bool:
        """Without an execution id whoever has the job loses it."""
        fields = {"completed_at": time.time(), "error": error.model_dump()}
        return self._end(job_id, execution_id, JobState.FAILED, fields)

    def give_up_overdue(self, job: Job) -> bool:
        """Fail a job that waited longer than its client wanted to; False if it did not, or was taken just now."""
        if not job.is_overdue(time.time()):
            return False
        error = JobError(code="start_timeout", message="No worker was free within start_timeout_s.")
        fields = {"completed_at": time.time(), "error": error.model_dump()}
        return self._end(job.id, None, JobState.FAILED, fields, only_from=JobState.QUEUED)

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
        keys = [job_key(job_id), queue_key(job.generation.model), RqJob.key_for(job_id), OUTBOX, LISTENERS]
        states = (JobState.QUEUED, JobState.RUNNING, JobState.CANCELLED)
        args = [job_id, *map(json.dumps, states), json.dumps(time.time()), oldest_kept()]
        return _decode(_pairs(self._cancel_script(keys, args)))

    def finish_cancel(self, job_id: str, execution_id: str) -> bool:
        return self._end(job_id, execution_id, JobState.CANCELLED, {"completed_at": time.time()})

    def delete(self, job_id: str) -> Job | None:
        """Record and index of an ended job; returns what it was. None if there was none or it has not ended."""
        ended = {state for state in JobState if state.is_terminal}
        keys = [job_key(job_id), INDEX, RqJob.key_for(job_id)]
        args = [job_id, _one_of(ended), owner_index(""), DELIVERED_TTL_S]
        return _decode(_pairs(self._delete_script(keys, args)))

    def _end(
        self,
        job_id: str,
        execution_id: str | None,
        state: JobState,
        fields: Mapping[str, Any],
        *,
        only_from: JobState | None = None,
    ) -> bool:
        sources = {source for source, targets in LEGAL.items() if state in targets}
        if execution_id is not None:
            sources &= {JobState.RUNNING}
        if only_from is not None:
            sources &= {only_from}
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
        news = oldest_kept() if already else ""
        keys = [job_key(job_id), OUTBOX, LISTENERS]
        return bool(self._move_script(keys, [_one_of(sources), owner, done, news, *flat]))


def _shown(record: bytes | None = None, *position: int | None) -> Shown | ValueError | None:
    if record is None:
        return None
    try:
        job = Job.model_validate_json(record)
    except ValueError as e:
        return e
    # No place: a worker has taken it from the queue and not yet said so. Nobody is ahead.
    return job, (position[0] or 0) if position else None


def job_key(job_id: str) -> str:
    return f"ivm:job:{job_id}"


def owner_index(owner: str) -> str:
    return f"ivm:jobs:{owner}"


def lease_key(job_id: str) -> str:
    return f"ivm:lease:{job_id}"


def idempotency_key(owner: str, key: str) -> str:
    return f"ivm:idem:{owner}:{key}"


def _refuse(answer: str, most: int) -> NoReturn:
    if answer == "reused":
        raise IdempotencyKeyReused
    whose = {"queue_full": "the server takes", "owner_full": "this key may have"}[answer]
    raise QueueFull(f"{most} videos wait already, the most that {whose}; try again later.", QUEUE_FULL_RETRY_S)


def _one_of(states: set[JobState]) -> str:
    return f"|{'|'.join(map(json.dumps, states))}|"


def _encode(record: Mapping[str, Any]) -> dict[str, str]:
    return {field: json.dumps(value) for field, value in record.items()}


def _decode(record: Mapping[bytes, bytes]) -> Job | None:
    if not record:
        return None
    return Job.model_validate({field.decode(): json.loads(value) for field, value in record.items()})


def _decode_if_sound(record: Mapping[bytes, bytes]) -> Job | None:
    """For lists: one record that is damaged must not hide all others."""
    try:
        return _decode(record)
    except ValueError:
        log.error("the record of %s cannot be read", record.get(b"id", b"?").decode(errors="replace"))
        return None


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
