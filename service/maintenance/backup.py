"""`ivmix backup`: everything in Redis that cannot be rebuilt from the storage, while the service runs.

Redis has no snapshot that a client can read, so keys are read one after the other, each as it is at that moment. The
order makes the result consistent where it matters: what follows from a record is read after it. A job that ends
meanwhile is in the backup as it was before, or with its webhook event, which may come with its deliveries too but is
never missing.
Left out is what is derived from records (indexes, queue entries, written again by a restore), what expires within
seconds (leases, previews), and which files are to be deleted: a restored server must not delete files that were stored
after the backup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from typing import Any, TypeVar

from redis import Redis

from service.jobs.outbox import OUTBOX
from service.jobs.rq_queues import all_queues, is_generate_queue, model_of
from service.maintenance.backup_file import BackupWriter, Line
from service.redis_scripts import UntypedRedis

T = TypeVar("T")

BATCH = 200  # keys read in one round trip
CHUNK = 500  # entries of a large collection in one line
# Hashes that are read and written in one go: their fields belong together. The others are collections.
WHOLE = re.compile(r"ivm:(job|idem|webhook:delivery|usage:\d+):")

DERIVED = re.compile(
    r"""ivm:(
        jobs(:.*)? | index:.* | waiting:.* | active | ended | references
        | lease:.* | preview:.* | loads:.* | rate.* | check:.* | maintenance | ready | events | replicated | restored
        | webhook:(busy|waiting|queue):.* | webhook:queues
    )""",
    re.VERBOSE | re.DOTALL,
)


class BackupStage(IntEnum):
    """What is read when. Of a job that ends meanwhile, its usage is missing rather than counted twice."""

    USAGE = 0
    RECORDS = 1
    OUTBOX = 2
    OTHERS = 3


def stage_of(key: str) -> BackupStage | None:
    """None for a key that is not kept."""
    if DERIVED.fullmatch(key):
        return None
    if key.startswith("ivm:usage:"):
        return BackupStage.USAGE
    if key.startswith("ivm:job:"):
        return BackupStage.RECORDS
    return BackupStage.OUTBOX if key == OUTBOX else BackupStage.OTHERS


@dataclass
class Backup:
    """Writes all lines; `counts` says what there was."""

    redis: Redis
    counts: dict[str, int] = field(default_factory=lambda: {"videos": 0, "waiting": 0, "other keys": 0})

    def write(self, writer: BackupWriter) -> None:
        for stage in BackupStage:
            for keys in self._keys(stage):
                for line in self._read(keys):
                    writer.write(line)
        for queue in all_queues(self.redis):
            if is_generate_queue(queue.name):
                ids = list(queue.job_ids)
                self.counts["waiting"] += len(ids)
                writer.write({"queue": model_of(queue.name), "ids": ids})

    def _keys(self, stage: BackupStage) -> Iterator[list[bytes]]:
        """Every key of a stage, in batches; a key may come twice."""
        untyped: UntypedRedis = self.redis
        batch: list[bytes] = []
        for key in untyped.scan_iter(match="ivm:*", count=1000):
            if stage_of(key.decode("latin-1")) is stage:
                batch.append(key)
                if len(batch) == BATCH:
                    yield batch
                    batch = []
        yield batch

    def _read(self, keys: Sequence[bytes]) -> Iterator[Line]:
        untyped: UntypedRedis = self.redis
        with untyped.pipeline(transaction=False) as pipe:
            pipe.time()
            for key in keys:
                pipe.type(key)
                pipe.pttl(key)
            (seconds, micros), *replies = pipe.execute()
        now_ms = 1000 * seconds + micros // 1000
        for key, kind, left_ms in zip(keys, replies[::2], replies[1::2], strict=True):
            name, found = text(key), False
            expiry = {"expires_at_ms": now_ms + left_ms} if left_ms >= 0 else {}
            for value in self._values(key, kind.decode()):
                found = True
                yield {"key": name, "type": kind.decode(), "value": value} | expiry
            self.counts["videos" if name.startswith("ivm:job:") else "other keys"] += found

    def _values(self, key: bytes, kind: str) -> Iterator[Any]:
        """The value in one part, or a large collection in several; nothing if the key is gone by now."""
        redis: UntypedRedis = self.redis
        match kind:
            case "string":
                if (value := redis.get(key)) is not None:
                    yield text(value)
            case "hash" if WHOLE.match(text(key)):
                if record := redis.hgetall(key):
                    yield [[text(name), text(value)] for name, value in record.items()]
            case "hash":
                for part in chunks(redis.hscan_iter(key, count=CHUNK)):
                    yield [[text(name), text(value)] for name, value in part]
            case "set":
                for part in chunks(redis.sscan_iter(key, count=CHUNK)):
                    yield [text(member) for member in part]
            case "zset":
                for part in chunks(redis.zscan_iter(key, count=CHUNK)):
                    yield [[text(member), score] for member, score in part]
            case "list":
                if values := redis.lrange(key, 0, -1):  # short ones only: times of the last videos
                    yield [text(value) for value in values]
            case "stream":
                for part in chunks(self._entries(key)):
                    yield [[entry, [[text(name), text(value)] for name, value in fields]] for entry, fields in part]
            case _:  # deleted meanwhile
                return

    def _entries(self, stream: bytes) -> Iterator[tuple[str, Iterable[tuple[bytes, bytes]]]]:
        untyped: UntypedRedis = self.redis
        after = "-"
        while entries := untyped.xrange(stream, after, count=CHUNK):
            for entry, fields in entries:
                yield entry.decode(), fields.items()
            after = f"({entries[-1][0].decode()}"


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """Lists of at most CHUNK items."""
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def text(data: bytes) -> str:
    return data.decode("latin-1")
