"""`ivmix restore`: writes a backup into Redis. What is there already is never changed, so it may be repeated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from service.audit_log import AUDIT
from service.errors import ConfigurationError
from service.jobs.keys import ACTIVE, INDEXED
from service.jobs.outbox import OUTBOX
from service.jobs.restored_jobs import RestoredJobs
from service.maintenance.backup import WHOLE, stage_of
from service.maintenance.backup_file import Line, check_backup, read_backup
from service.redis_scripts import UntypedRedis
from service.settings_audit import KNOWN
from service.signatures import SECRET_KEY

MADE_BY_ITSELF = {SECRET_KEY, INDEXED, KNOWN, AUDIT}  # processes that only run make these


@dataclass
class Restore:
    """
    Attributes:
        counts: what was written; "kept" is what was there already.
    """

    redis: Redis
    counts: Counter[str] = field(default_factory=Counter[str])

    def run(self, path: Path, *, merge: bool = False) -> Line:
        """Check the whole file, then write it, and return its first line.

        Args:
            merge: write into a server that is not empty too.

        Raises:
            ConfigurationError: the file cannot be used, or the server is not empty. Nothing is written then.
        """
        first = check_backup(path)
        if not merge and (key := self._first_key()) is not None:
            raise ConfigurationError(
                f"Redis is not empty (it has {key}); restore into an empty one, or add --merge to keep what it has and "
                "write what it lacks"
            )
        for line in read_backup(path):
            if "queue" in line:
                self.counts["enqueued"] += RestoredJobs(self.redis).enqueue(line["queue"], line["ids"])
            else:
                self.counts[self._write(line)] += 1
        return first

    def _first_key(self) -> str | None:
        """Of what a backup would contain."""
        untyped: UntypedRedis = self.redis
        for key in untyped.scan_iter(match="ivm:*", count=1000):
            name = key.decode("latin-1")
            if stage_of(name) is not None and name not in MADE_BY_ITSELF:
                return name
        return None

    def _write(self, line: Line) -> str:
        """Returns what it was."""
        name, kind, value = line["key"], line["type"], line["value"]
        job_id = name.removeprefix("ivm:job:") if name.startswith("ivm:job:") else None
        if job_id is not None and kind == "hash":
            record = {raw(field): raw(stored) for field, stored in value}
            return "videos" if RestoredJobs(self.redis).write(job_id, record) else "kept"
        untyped: UntypedRedis = self.redis
        key = raw(name)
        if (is_known := bool(untyped.exists(key))) and (kind in ("string", "list") or WHOLE.match(name)):
            return "kept"
        WRITERS[kind](untyped, key, value)
        if not is_known and (expiry := line.get("expires_at_ms")) is not None:
            untyped.pexpireat(key, expiry)
        if job_id is not None:  # damaged; the reaper finds it there
            untyped.sadd(ACTIVE, job_id)
        return "other entries"


def raw(stored: str) -> bytes:
    return stored.encode("latin-1")


def _write_string(redis: UntypedRedis, key: bytes, value: str) -> None:
    redis.set(key, raw(value), nx=True)


def _write_hash(redis: UntypedRedis, key: bytes, value: list[list[str]]) -> None:
    with redis.pipeline(transaction=True) as pipe:
        for name, stored in value:
            pipe.hsetnx(key, raw(name), raw(stored))
        pipe.execute()


def _write_set(redis: UntypedRedis, key: bytes, value: list[str]) -> None:
    redis.sadd(key, *map(raw, value))


def _write_sorted_set(redis: UntypedRedis, key: bytes, value: list[tuple[str, float]]) -> None:
    redis.zadd(key, {raw(member): score for member, score in value}, nx=True)


def _write_list(redis: UntypedRedis, key: bytes, value: list[str]) -> None:
    redis.rpush(key, *map(raw, value))


def _write_stream(redis: UntypedRedis, key: bytes, value: list[tuple[str, list[list[str]]]]) -> None:
    """Entries of the outbox, each once; or of the audit log, each at its place, because its id is its time."""
    if key == OUTBOX.encode():
        for entry, pairs in value:
            RestoredJobs(redis).write_event(entry, {raw(name): raw(stored) for name, stored in pairs})
        return
    earlier: list[tuple[str, dict[bytes, bytes]]] = []
    for entry, pairs in value:
        if redis.xrange(key, entry, entry):
            continue
        fields = {raw(name): raw(stored) for name, stored in pairs}
        try:
            redis.xadd(key, fields, id=entry)
        except ResponseError:
            earlier.append((entry, fields))
    if earlier:
        _insert(redis, key, earlier)


def _insert(redis: UntypedRedis, stream: bytes, earlier: list[tuple[str, dict[bytes, bytes]]]) -> None:
    """Write a stream again with these entries in their places. It must be short, for it is held in memory."""

    def write_again(pipe: UntypedRedis) -> None:
        there = [(entry.decode(), fields) for entry, fields in pipe.xrange(stream)]
        pipe.multi()
        pipe.delete(stream)
        for entry, fields in sorted([*there, *earlier], key=lambda pair: _position(pair[0])):
            pipe.xadd(stream, fields, id=entry)

    redis.transaction(write_again, stream)


def _position(entry: str) -> tuple[int, ...]:
    """Of an entry in its stream: milliseconds, and a number among those of one millisecond."""
    return tuple(map(int, entry.split("-")))


WRITERS: dict[str, Callable[[UntypedRedis, bytes, Any], None]] = {
    "string": _write_string,
    "hash": _write_hash,
    "set": _write_set,
    "zset": _write_sorted_set,
    "list": _write_list,
    "stream": _write_stream,
}
