"""The stream of changes of jobs in Redis; shared/events.lua writes it. It may be trimmed, and lost with its server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from service.redis_records import Record, decode_value
from service.redis_scripts import UntypedRedis

EVENTS = "ivm:events"
START = "0-0"  # before the first entry of any stream
READ_AT_ONCE = 1000  # entries


@dataclass(frozen=True)
class Change:
    """One entry, or several of one video.

    Attributes:
        entry: id of the newest entry.
        owner: None if the record did not say it.
        is_new: the video was created or restored.
    """

    entry: str
    video_id: str
    owner: str | None
    is_new: bool


class EventLog:
    def __init__(self, redis: Redis) -> None:
        self._redis: UntypedRedis = redis

    def last(self) -> str:
        """Return the id of the newest entry, START if there is none."""
        entries = self._redis.xrevrange(EVENTS, count=1)
        return entries[0][0].decode() if entries else START

    def wait(self, after: str, seconds: float) -> None:
        """Block until there is an entry after this one, at most for this long."""
        self._redis.xread({EVENTS: after}, count=1, block=max(1, int(1000 * seconds)))

    def read(self, after: str, *, limit: int = READ_AT_ONCE) -> list[Change] | None:
        """Return the entries after one, oldest first; None if that one is no longer there: some may have been lost."""
        entries = self._redis.xrange(EVENTS, after, count=limit + 1)
        if after != START:
            if not entries or entries[0][0].decode() != after:
                return None
            del entries[0]
        return [_change(*entry) for entry in entries]


def newest_of_each(changes: Iterable[Change]) -> Sequence[Change]:
    """One change per video, in the order of their newest entries."""
    newest: dict[str, Change] = {}
    for change in changes:
        before = newest.pop(change.video_id, None)
        is_new = change.is_new or (before is not None and before.is_new)
        newest[change.video_id] = Change(change.entry, change.video_id, change.owner, is_new)
    return list(newest.values())


def _change(entry: bytes, fields: Record) -> Change:
    owner: Any = decode_value(fields.get(b"owner", b""))
    return Change(
        entry.decode(),
        fields.get(b"id", b"").decode(errors="replace"),
        owner if isinstance(owner, str) else None,
        fields.get(b"kind") == b"created",
    )
