"""What each owner has used, by day (UTC). Written by the script that ends a job (shared/gpu_time.lua), in Redis:

ivm:usage:{day}:{owner}    a hash of counts; `day` is the number of days since 1970
ivm:usage:owners:{day}     a sorted set of the owners of that day, all with score 0
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import islice

from redis import Redis

from service.redis_scripts import UntypedRedis

EPOCH = date(1970, 1, 1)
KEPT_DAYS = 400  # as in shared/gpu_time.lua
READ_AT_ONCE = 200


@dataclass(frozen=True)
class Usage:
    """The jobs of one owner that ended on one day.

    Attributes:
        owner: id of the API key, or of the one that it replaces.
        videos: completed ones.
        gpu_seconds: of all of them, in any state.
        failed_gpu_seconds: those of failed and cancelled ones.
        bytes: size of the completed videos.
    """

    day: date
    owner: str
    videos: int = 0
    failed: int = 0
    cancelled: int = 0
    gpu_seconds: float = 0.0
    failed_gpu_seconds: float = 0.0
    bytes: int = 0

    @property
    def id(self) -> str:
        """Usage sorts by it, the oldest first."""
        return f"{self.day.isoformat()}:{self.owner}"


class UsageStore:
    def __init__(self, redis: Redis) -> None:
        self._redis: UntypedRedis = redis

    def page(
        self,
        first: date,
        last: date,
        *,
        owner: str | None = None,
        limit: int = 100,
        after: tuple[date, str] | None = None,
    ) -> tuple[list[Usage], bool]:
        """Return the usage from the first to the last day, the oldest first, and whether more follows. Days for which
        there can be none are not looked at.

        Args:
            owner: None for all.
            after: day and owner after which the page starts.
        """
        today, margin = datetime.now(UTC).date(), 1  # Redis' clock decides on the day
        oldest, newest = today - timedelta(days=KEPT_DAYS + margin), today + timedelta(days=margin)
        found = list(islice(self._walk(max(first, oldest), min(last, newest), owner, after), limit + 1))
        return found[:limit], len(found) > limit

    def _walk(self, first: date, last: date, owner: str | None, after: tuple[date, str] | None) -> Iterator[Usage]:
        day = max(first, after[0]) if after else first
        while day <= last:
            start = after[1] if after and day == after[0] else None
            if owner is None:
                for owners in self._owners(day, start):
                    yield from self._read([(day, name) for name in owners])
                day += timedelta(days=1)
            else:
                days = [day + timedelta(days=n) for n in range(min(READ_AT_ONCE, (last - day).days + 1))]
                yield from self._read([(each, owner) for each in days if not (each == day and start == owner)])
                day = days[-1] + timedelta(days=1)

    def _owners(self, day: date, after: str | None) -> Iterator[list[str]]:
        """The owners of a day in order, READ_AT_ONCE at a time."""
        key, start = f"ivm:usage:owners:{_number(day)}", f"({after}" if after else "-"
        while names := self._redis.zrange(key, start, "+", bylex=True, offset=0, num=READ_AT_ONCE):
            yield [name.decode() for name in names]
            start = f"({names[-1].decode()}"

    def _read(self, wanted: Sequence[tuple[date, str]]) -> Iterator[Usage]:
        with self._redis.pipeline(transaction=False) as pipe:
            for day, owner in wanted:
                pipe.hgetall(f"ivm:usage:{_number(day)}:{owner}")
            replies = pipe.execute()
        for (day, owner), counts in zip(wanted, replies, strict=True):
            if counts:
                yield _usage(day, owner, {name.decode(): int(value) for name, value in counts.items()})


def _usage(day: date, owner: str, counts: dict[str, int]) -> Usage:
    return Usage(
        day=day,
        owner=owner,
        videos=counts.get("videos", 0),
        failed=counts.get("failed", 0),
        cancelled=counts.get("cancelled", 0),
        gpu_seconds=counts.get("gpu_ms", 0) / 1000,
        failed_gpu_seconds=counts.get("failed_gpu_ms", 0) / 1000,
        bytes=counts.get("bytes", 0),
    )


def _number(day: date) -> int:
    return (day - EPOCH).days
