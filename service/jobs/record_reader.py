"""Reading job records: single ones, pages of them, and queue positions."""

from __future__ import annotations

import builtins
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis

from service.errors import IdempotencyKeyReused
from service.jobs.job_list import JobFilter, JobLister, Order
from service.jobs.job_record import check_job, decode_job, view_job
from service.jobs.keys import durations_key, idempotency_key, job_key, owner_index, preview_key
from service.jobs.model import Job
from service.jobs.rq_queues import queue_key
from service.redis_records import decode_value, read_record, read_records
from service.redis_scripts import UntypedRedis, load_script

POSITIONS = "service.jobs", "get_with_positions"  # a script, see `decode_answer`
JobWithPosition = tuple[Job, int | None]  # the job and the number of jobs ahead of it; None if it is not queued


@dataclass(frozen=True)
class Idempotency:
    """The client's Idempotency-Key, and a fingerprint that is equal for equal requests."""

    key: str
    fingerprint: str


class JobReader:
    def __init__(self, redis: Redis) -> None:
        self._redis: UntypedRedis = redis
        self.lists = JobLister(redis)
        self._get_with_positions_script = load_script(redis, *POSITIONS)
        self._jobs_ahead_script = load_script(redis, "service.jobs", "jobs_ahead")

    def get(self, job_id: str) -> Job | None:
        """Return the job, for those who work on it. Raises ValueError for a damaged record."""
        return decode_job(job_id, read_record(self._redis, job_key(job_id)))

    def view(self, job_id: str) -> Job | None:
        """Return the job, for those who show it: a damaged record is a DamagedJob, one that is being deleted None."""
        return _shown(self.view_any(job_id))

    def view_any(self, job_id: str) -> Job | None:
        """Like `view`, but also a job that is being deleted."""
        return view_job(job_id, read_record(self._redis, job_key(job_id)))

    def exists(self, job_id: str) -> bool:
        """Return whether there is a record, even a damaged one."""
        return bool(self._redis.exists(job_key(job_id)))

    def preview(self, job_id: str) -> bytes | None:
        """Return the newest preview of a running job, a WebP file; None if there is none."""
        return self._redis.get(preview_key(job_id))

    def is_in_index(self, job_id: str, owner: str) -> bool:
        """Return whether the owner's index has the job; decides who owns a record that does not say it."""
        return self._redis.zscore(owner_index(owner), job_id) is not None

    def find_by_idempotency_key(self, owner: str, idempotency: Idempotency) -> builtins.list[Job]:
        """Return the jobs of an earlier request with this key, without the deleted ones; `create_many` checks again.

        Raises:
            IdempotencyKeyReused: it was another request.
        """
        names = "fingerprint", "id", "ids"  # `ids` if it created several
        fingerprint, first, ids = self._redis.hmget(idempotency_key(owner, idempotency.key), *names)
        if not (fingerprint and first):
            return []
        jobs = [job for job in self.view_many((ids or first).decode(errors="replace").split()) if job]
        if jobs and fingerprint != idempotency.fingerprint.encode():
            raise IdempotencyKeyReused
        return jobs

    def get_with_position(self, job_id: str) -> JobWithPosition | None:
        """Read a job and its queue position in one round trip."""
        return self.get_many_with_positions([job_id])[0]

    def get_many_with_positions(self, job_ids: Sequence[str]) -> builtins.list[JobWithPosition | None]:
        """Read many in one round trip, and damaged ones once more."""
        answers = self._get_with_positions_script([job_key(job_id) for job_id in job_ids], [])
        return [self._with_position(job_id, answer) for job_id, answer in zip(job_ids, answers, strict=True)]

    def _with_position(self, job_id: str, answer: bytes) -> JobWithPosition | None:
        try:
            return decode_answer(job_id, answer)
        except ValueError:
            job = self.view(job_id)
            return None if job is None else (job, None)

    def view_many(self, job_ids: Sequence[str]) -> builtins.list[Job | None]:
        """Like `view` of each, in one round trip."""
        records = read_records(self._redis, map(job_key, job_ids))
        return [_shown(view_job(job_id, record)) for job_id, record in zip(job_ids, records, strict=True)]

    def jobs_ahead(self, model: str, owners: Sequence[str]) -> builtins.list[int]:
        """Return for each owner how many waiting jobs would run before a new one of normal priority."""
        return self._jobs_ahead_script([queue_key(model)], [json.dumps(owner) for owner in owners])

    def list(
        self, *, limit: int = 20, order: Order = "desc", after: str | None = None, owner: str | None = None
    ) -> tuple[builtins.list[Job], bool]:
        """Return one page of all jobs, or of one owner's, and whether more follow."""
        return self.lists.page(JobFilter(owner=owner), limit=limit, order=order, after=after)

    def recent_durations(self, model: str) -> builtins.list[tuple[float, float]]:
        """Return (completion in unix seconds, seconds spent) of a model's last KEPT_DURATIONS videos, newest first."""
        entries = [decode_value(entry) for entry in self._redis.lrange(durations_key(model), 0, -1)]
        return [(float(entry[0]), float(entry[1])) for entry in entries if _is_duration(entry)]


def decode_answer(job_id: str, answer: bytes) -> JobWithPosition | None:
    """Decode what the script POSITIONS returns for one job. Raises ValueError for a damaged record."""
    if not answer:
        return None
    record, _, position = answer.rpartition(b"\n")
    job = Job.model_validate_json(record)
    check_job(job_id, job)
    return None if _shown(job) is None else (job, int(position) if position else None)


def _shown(job: Job | None) -> Job | None:
    return None if job is None or job.delete_requested else job


def _is_duration(entry: Any) -> bool:
    if not isinstance(entry, list):
        return False
    numbers = cast(builtins.list[Any], entry)
    return len(numbers) == 2 and all(isinstance(number, int | float) for number in numbers)
