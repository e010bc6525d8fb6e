"""Job records in Redis: create, read, change and delete them.

Every change of a job's state is one script in `scripts/` that compares state and execution id first, so a worker that
lost its job changes nothing. Scripts that workers and clients call may be repeated with the same result, because
redis-py sends a command again if its reply was lost.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from redis import Redis
from rq import Queue
from rq.job import Job as RqJob

from service.errors import NotReplicated
from service.jobs.job_errors import RECORD_DAMAGED, START_TIMEOUT
from service.jobs.job_record import DamagedJob
from service.jobs.keys import (
    ACTIVE,
    durations_key,
    idempotency_key,
    job_key,
    lease_key,
    owner_index,
    preview_key,
    waiting_key,
)
from service.jobs.model import ALLOWED_TRANSITIONS, Job, JobError, JobState, Output, Phase
from service.jobs.outbox import LISTENERS, OUTBOX, oldest_kept
from service.jobs.record_reader import Idempotency, JobReader
from service.jobs.refusals import refuse
from service.jobs.rq_queues import generate_queue, recorded_generate
from service.redis_connection.replication import Replication
from service.redis_records import encode_fields
from service.redis_scripts import flatten_commands, load_script

IDEMPOTENCY_TTL_S = 24 * 3600
KEPT_DURATIONS = 50  # completed videos per model on which the waiting time is estimated


class LeaseReply(StrEnum):
    """Reply to a worker that checks or renews its lease."""

    CONTINUE = "continue"
    CANCEL = "cancel"  # the client requested cancellation
    LOST = "lost"  # another execution has the job, or it has ended: stop and write nothing


class Deletion(StrEnum):
    DELETED = "deleted"  # the record is gone; maintenance deletes what files remain
    STOPPING = "stopping"  # the job is not shown any more; its record is deleted when its worker has stopped


@dataclass(frozen=True)
class QueueLimits:
    """Most waiting jobs: in one model's queue, and of one owner; and most GPU seconds of that owner per UTC day."""

    per_queue: int
    per_owner: int
    gpu_seconds_per_day: int | None = None


NO_LIMITS = QueueLimits(per_queue=2**31, per_owner=2**31)


class JobStore(JobReader):
    """Reads and changes job records.

    Methods that take an execution id return False, and change nothing, if the job does not belong to that execution.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        retention_seconds: float = 7 * 86400,
        lease_s: float = 45,
        replication: Replication = Replication(),  # noqa: B008  # immutable
    ) -> None:
        """`replication` is of what clients get an answer for: videos that they create, cancel and delete."""
        super().__init__(redis)
        self._replication = replication
        self._retention_seconds = retention_seconds
        self._lease_ms = int(lease_s * 1000)
        load = partial(load_script, redis, "service.jobs")
        load_replicated = partial(replication.load_script, redis, "service.jobs")
        self._create_script = load_replicated("create")
        self._withdraw_script = load("withdraw")
        self._start_script = load("start")
        self._renew_lease_script = load("renew_lease")
        self._end_script = load("end")
        self._requeue_script = load("requeue")
        self._send_again_script = load("send_again")
        self._fail_damaged_script = load("fail_damaged")
        self._cancel_script = load_replicated("cancel")
        self._delete_script = load_replicated("delete")
        self._delete_expired_script = load("delete")
        self._reindex_script = load("reindex")
        self._restore_script = load("restore")

    def create(
        self, job: Job, queue: Queue, *, limits: QueueLimits = NO_LIMITS, idempotency: Idempotency | None = None
    ) -> Job:
        """`create_many` of one job."""
        return self.create_many([job], queue, limits=limits, idempotency=idempotency)[0]

    def create_many(
        self,
        jobs: Sequence[Job],
        queue: Queue,
        *,
        limits: QueueLimits = NO_LIMITS,
        idempotency: Idempotency | None = None,
    ) -> list[Job]:
        """Write records, indexes, idempotency record and RQ entries of one owner's jobs in one script: all or none.

        Returns:
            The jobs, or those of the first request if this one repeats it, without the deleted ones.

        Raises:
            QueueFull, QuotaExceeded: one of the limits would be exceeded.
            IdempotencyKeyReused: the key was used with a different request.
            NotReplicated: too few replicas have the jobs. They are taken back, unless the primary is lost now.
        """
        self._replication.require(self._redis)
        owner = jobs[0].owner
        fingerprint, idempotency_record = "", idempotency_key(owner, "")
        if idempotency is not None:
            fingerprint, idempotency_record = idempotency.fingerprint, idempotency_key(owner, idempotency.key)
        args: list[Any] = [fingerprint, IDEMPOTENCY_TTL_S, limits.per_queue, limits.per_owner, len(jobs)]
        args += [1000 * (limits.gpu_seconds_per_day or 0), sum(job.expected_gpu_ms for job in jobs)]
        for job in jobs:
            fields, commands = _fields(job), flatten_commands(recorded_generate(queue, job.id))
            args += [job.id, len(fields), *fields, len(commands), *commands]
        try:
            answer, detail = self._create_script([queue.key, waiting_key(owner), idempotency_record, ACTIVE], args)
        except NotReplicated:
            self._withdraw_script([idempotency_record], [job.id for job in jobs])
            raise
        match answer:
            case b"created":
                return list(jobs)
            case b"replayed":
                return [job for job in map(self.view, detail.decode().split()) if job] or list(jobs)
            case _:
                refuse(answer.decode(), detail.decode(), len(jobs), limits.gpu_seconds_per_day)

    def find_by_idempotency_key(self, owner: str, idempotency: Idempotency) -> list[Job]:
        """As `JobReader`; the jobs are on enough replicas to be acknowledged again. Raises NotReplicated otherwise."""
        jobs = super().find_by_idempotency_key(owner, idempotency)
        if not jobs:
            return []
        return jobs if self._replication.has(self._redis, [job_key(job.id) for job in jobs]) else []

    def restore(self, job: Job) -> bool:
        """Write the record of an ended job again; False, without a change, if there is one."""
        keys = [job_key(job.id), ACTIVE]
        return bool(self._restore_script(keys, [job.id, *_fields(job)]))

    def start(self, job_id: str, execution_id: str) -> Job | None:
        """Take a queued job, with a lease. None if it is no longer queued, or overdue (then it fails)."""
        if (job := self.get(job_id)) is not None and self.fail_if_overdue(job):
            return None
        args = [json.dumps(execution_id), json.dumps(time.time()), self._lease_ms, job_id]
        return self.get(job_id) if self._start_script([job_key(job_id), lease_key(job_id)], args) else None

    def check_lease(self, job_id: str, execution_id: str) -> LeaseReply:
        """Check for cancellation and loss of the job; renews nothing."""
        return self._renew_lease(job_id, execution_id, 0)

    def renew_lease(self, job_id: str, execution_id: str) -> LeaseReply:
        """Renew the lease, even an expired one if no other execution has taken the job since."""
        return self._renew_lease(job_id, execution_id, self._lease_ms)

    def report_progress(
        self,
        job_id: str,
        execution_id: str,
        step: int,
        total_steps: int,
        phase: Phase | str,
        preview: bytes | None = None,
        gpu_seconds: float = 0.0,
    ) -> LeaseReply:
        """Store the progress, and a new preview if there is one, and renew the lease.

        Args:
            gpu_seconds: of this execution so far, for steps that no earlier one has finished.
        """
        progress = [json.dumps(value) for value in (step, total_steps, Phase(phase), round(1000 * gpu_seconds))]
        new = [] if preview is None else [preview]
        return self._renew_lease(job_id, execution_id, self._lease_ms, *progress, *new)

    def _renew_lease(self, job_id: str, execution_id: str, lease_ms: int, *progress: str | bytes) -> LeaseReply:
        args = [json.dumps(execution_id), lease_ms, *progress]
        keys = [job_key(job_id), lease_key(job_id), preview_key(job_id)]
        return LeaseReply(self._renew_lease_script(keys, args).decode())

    def complete(
        self,
        job_id: str,
        execution_id: str,
        output: Output,
        timings: Mapping[str, float],
        peak_memory_mb: float | None,
    ) -> bool:
        """Complete a job whose files are already in the storage."""
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
        """Fail a job. Without an execution id it fails whichever execution has it."""
        fields = {"completed_at": time.time(), "error": error.model_dump()}
        return self._end(job_id, execution_id, JobState.FAILED, fields)

    def fail_damaged(self, job_id: str) -> bool:
        """Fail a job whose record is damaged, whatever can be read of its state. False if it has ended."""
        fields = {
            "id": job_id,
            "state": JobState.FAILED,
            "completed_at": time.time(),
            "error": RECORD_DAMAGED.model_dump(),
        }
        args = [job_id, oldest_kept(), *encode_fields(fields)]
        return bool(self._fail_damaged_script([job_key(job_id), OUTBOX, LISTENERS], args))

    def fail_if_overdue(self, job: Job) -> bool:
        """Fail a job that was not started within its start_timeout_s; False if it is not late or was just started."""
        return job.is_overdue(time.time()) and self.fail_queued(job.id, START_TIMEOUT)

    def fail_queued(self, job_id: str, error: JobError) -> bool:
        """Fail a job that waits; False if it does not, or was just started."""
        fields = {"completed_at": time.time(), "error": error.model_dump()}
        return self._end(job_id, None, JobState.FAILED, fields, sources={JobState.QUEUED})

    def finish_cancel(self, job_id: str, execution_id: str) -> bool:
        """End a running job as cancelled, after its worker has stopped."""
        return self._end(job_id, execution_id, JobState.CANCELLED, {"completed_at": time.time()})

    def _end(
        self,
        job_id: str,
        execution_id: str | None,
        state: JobState,
        fields: Mapping[str, Any],
        *,
        sources: set[JobState] | None = None,
    ) -> bool:
        if sources is None:
            sources = {source for source, targets in ALLOWED_TRANSITIONS.items() if state in targets}
        if execution_id is not None:
            sources &= {JobState.RUNNING}
        owner = "" if execution_id is None else json.dumps(execution_id)
        final = encode_fields({**fields, "state": state, "phase": None})
        args = [_one_of(sources), owner, json.dumps(state), oldest_kept(), job_id, *final]
        return bool(self._end_script([job_key(job_id), OUTBOX, LISTENERS], args))

    def cancel(self, job_id: str) -> Job | None:
        """Cancel a queued job, or request the cancellation of a running one; returns the job as it is then."""
        keys = [job_key(job_id), RqJob.key_for(job_id), OUTBOX, LISTENERS]
        args = [job_id, json.dumps(time.time()), oldest_kept()]
        self._cancel_script(keys, args)
        return self.view(job_id)

    def requeue(
        self, job: Job, execution_id: str, *, counts_as_attempt: bool = True, unless_leased: bool = False
    ) -> bool:
        """Return a job to the front of its queue, record and RQ entry in one script.

        A job whose cancellation was requested ends as cancelled instead, and False is returned.

        Args:
            counts_as_attempt: False if the worker is draining, which is not the job's fault.
            unless_leased: change nothing while a lease exists.
        """
        queue = generate_queue(self._redis, job.generation.model)
        answer = self._requeue_script(
            [job_key(job.id), lease_key(job.id)],
            [
                json.dumps(execution_id),
                0 if counts_as_attempt else -1,
                int(unless_leased),
                job.id,
                *flatten_commands(recorded_generate(queue, job.id, at_front=True)),
            ],
        )
        if answer == b"cancel":
            self.finish_cancel(job.id, execution_id)
        return answer == b"queued"

    def send_again(self, job: Job) -> bool:
        """Put a queued job that is in no queue back to the front of its queue; False if it is in the queue."""
        queue = generate_queue(self._redis, job.generation.model)
        keys = [job_key(job.id), queue.key, queue.intermediate_queue_key]
        commands = flatten_commands(recorded_generate(queue, job.id, at_front=True))
        return bool(self._send_again_script(keys, [job.id, *commands]))

    def delete(self, job_id: str, *, owner: str | None = None, only_ended: bool = False) -> Deletion | None:
        """Delete a job; a queued or running one is cancelled, with the event of a cancelled job.

        Args:
            owner: whose index to delete it from if a damaged record does not say it.
            only_ended: change nothing if the job has not ended.

        Returns:
            What has happened; None if nothing.
        """
        job = self.view_any(job_id)
        if job is None:
            return None
        keys = [job_key(job_id), owner_index(job.owner or owner or ""), OUTBOX, LISTENERS]
        flags = (int(isinstance(job, DamagedJob)), int(only_ended))
        script = self._delete_expired_script if only_ended else self._delete_script
        answer = script(keys, [job_id, json.dumps(time.time()), oldest_kept(), *flags])
        return None if answer is None else Deletion(answer.decode())

    def reindex(self, job_ids: Sequence[str], *, everything: bool = False) -> None:
        """Write jobs into the indexes from which lists are answered: those that lack an entry, or all of them."""
        self._reindex_script([], [int(everything), *job_ids])

    def record_duration(self, model: str, seconds: float) -> None:
        """Add a completed video to `recent_durations`. For estimates only: it may be lost or counted twice."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.lpush(durations_key(model), json.dumps([time.time(), seconds]))
            pipe.ltrim(durations_key(model), 0, KEPT_DURATIONS - 1)
            pipe.execute()


def _fields(job: Job) -> list[str]:
    return encode_fields(job.model_dump(mode="json", exclude_none=True))


def _one_of(states: set[JobState]) -> str:
    return f"|{'|'.join(map(json.dumps, states))}|"
