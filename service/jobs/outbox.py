"""The transactional outbox: copies of job records whose final state has not been turned into webhook deliveries yet.

The script that ends a job appends the entry, so no event is lost. The script that removes an entry writes its
deliveries, so none is created twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from redis import Redis

from service.jobs.job_record import view_job
from service.jobs.model import Job
from service.redis_records import Record, decode_value
from service.redis_scripts import UntypedRedis, load_script

OUTBOX = "ivm:outbox"
LISTENERS = "ivm:webhook:listeners"  # owners (JSON) with at least one endpoint; others need no entry

KEEP_S = 4 * 86400  # longer than the retries last; bounds the outbox if no webhook dispatcher runs

Command = Sequence[str]  # a Redis command: name and arguments


def oldest_kept() -> str:
    """Return the stream id before which entries may be dropped."""
    return str(int((time.time() - KEEP_S) * 1000))


class Outbox:
    def __init__(self, redis: Redis) -> None:
        self._redis: UntypedRedis = redis
        self._settle = load_script(redis, "service.jobs", "settle_outbox_entry")

    def read(self, limit: int) -> list[tuple[str, Record]]:
        """Return the oldest entries: id and the stored record of the ended job, still encoded."""
        return [(entry.decode(), record) for entry, record in self._redis.xrange(OUTBOX, count=limit)]

    def depth(self) -> int:
        """Return the number of entries without deliveries."""
        return self._redis.xlen(OUTBOX)

    def settle(self, entry: str, commands: Sequence[Command] = (), *, creates: str | None = None) -> bool:
        """Remove an entry and run the commands in one transaction.

        Args:
            creates: a key that the commands create. If it exists, they have run for an earlier copy of this entry, and
                do not run again.

        Returns:
            False if the commands were not run: another process removed the entry first, or ran them for a copy.
        """
        return bool(self._settle([OUTBOX, *([creates] if creates else [])], [entry, json.dumps(commands)]))


def job_of(record: Record) -> Job:
    """Decode an entry; a damaged one becomes a DamagedJob.

    Raises:
        ValueError: the entry does not say which job of which owner has ended.
    """
    job_id = decode_value(record.get(b"id", b""))
    job = view_job(job_id, record) if isinstance(job_id, str) else None
    if job is None or not job.owner:
        raise ValueError("the outbox entry has no job id or no owner")
    return job
