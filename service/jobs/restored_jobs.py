"""Writes job records of a backup into Redis, with everything that is derived from them: indexes and queue entries.

A running job keeps its execution: if that worker is still alive it goes on, otherwise the job is requeued as every
other one without a lease.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from redis import Redis

from service.jobs.keys import ACTIVE, job_key
from service.jobs.outbox import OUTBOX
from service.jobs.rq_queues import generate_queue, recorded_generate
from service.redis_records import decode_value
from service.redis_scripts import UntypedRedis, flatten_commands, load_script

RESTORED = "ivm:restored"  # entries of the outbox that were restored; kept, as a backup may be restored at any time


class RestoredJobs:
    def __init__(self, redis: Redis) -> None:
        self._redis: UntypedRedis = redis
        self._restore = load_script(redis, "service.jobs", "restore")
        self._event = load_script(redis, "service.jobs", "restore_event")
        self._enqueue = load_script(redis, "service.jobs", "restore_queued")

    def write(self, job_id: str, record: Mapping[bytes, bytes]) -> bool:
        """Write a record as it was stored; False, without a change, if there is one with this id."""
        fields = dict(record)
        attempt = decode_value(fields.get(b"attempt", b""))
        if decode_value(fields.get(b"state", b"")) == "running" and isinstance(attempt, int) and attempt > 0:
            fields[b"attempt"] = json.dumps(attempt - 1).encode()  # losing Redis is not the job's fault
        parts = [part for pair in fields.items() for part in pair]
        return bool(self._restore([job_key(job_id), ACTIVE], [job_id, *parts]))

    def write_event(self, entry: str, fields: Mapping[bytes, bytes]) -> None:
        """Write an entry of the outbox, unless an earlier restore of the same backup has."""
        self._event([OUTBOX, RESTORED], [entry, *(part for pair in fields.items() for part in pair)])

    def enqueue(self, model: str, job_ids: list[str]) -> int:
        """Put waiting jobs into their queue, in this order. Returns how many were not in it."""
        queue, count = generate_queue(self._redis, model), 0
        for job_id in job_ids:
            commands = flatten_commands(recorded_generate(queue, job_id))
            count += int(self._enqueue([job_key(job_id), queue.key], [job_id, *commands]))
        return count
