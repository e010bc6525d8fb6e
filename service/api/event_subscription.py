"""What one client of GET /v1/events has yet to receive: bounded, the newest event of each video."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock

import anyio
from fastapi.sse import format_sse_event

from service.api.queue_snapshot import Audience

MAX_PENDING_BYTES = 1024 * 1024  # beyond it the client reads the lists again


@dataclass(frozen=True)
class Event:
    """An event as it is sent. Subscriptions share it.

    Attributes:
        owner: None if it cannot be read.
        entry: the newest entry of the stream in Redis that it covers.
    """

    video_id: str
    owner: str | None
    entry: str
    data: bytes


class Subscription:
    """Filled by any thread, emptied by the event loop in which it was made.

    Everything up to the entry `_position` has been added. Events are taken in the order of their entries, so a client
    that reconnects with the id of the last one misses nothing.
    """

    def __init__(self, audience: Audience, after: str | None) -> None:
        self.audience = audience
        self.after = after
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._lock = Lock()
        self._pending: dict[str, Event] = {}
        self._reset: bytes | None = None
        self._queue = self._last_queue = b""
        self._position: str | None = None

    def add(self, events: Iterable[Event], position: str) -> None:
        """Add events, all of which are visible to the client. `position`: the last entry that was looked at."""
        with self._lock:
            for event in events:
                self._pending.pop(event.video_id, None)  # the new one goes to the end
                self._pending[event.video_id] = event
            self._position = position
            self._check_size()
        self._wake()

    def add_missed(self, events: Iterable[Event], position: str) -> None:
        """Add events from before the client connected; newer ones may have been added already."""
        with self._lock:
            if self._reset:
                return
            older = {event.video_id: event for event in events if event.video_id not in self._pending}
            self._pending = older | self._pending
            self._position = self._position or position
            self._check_size()
        self._wake()

    def reset(self, position: str) -> None:
        """Replace all events by one that says that some were missed."""
        with self._lock:
            self._drop_all(position)
        self._wake()

    def set_queue(self, report: str) -> None:
        """Send the report of the queue, unless it was the last one sent."""
        data = format_sse_event(event="queue", data_str=report)
        with self._lock:
            if data == self._last_queue:
                return
            self._queue = self._last_queue = data
        self._wake()

    def take(self) -> bytes:
        """Everything that is to be sent now."""
        with self._lock:
            self._changed.clear()
            parts = [self._reset or b"", *(event.data for event in self._pending.values()), self._queue]
            self._pending, self._reset, self._queue = {}, None, b""
            return b"".join(parts)

    def idle_message(self) -> bytes:
        """A comment and the id from which to resume. It is not an event, so that clients do not notice it."""
        with self._lock:
            is_empty = not self._pending and self._reset is None
            return format_sse_event(comment="idle", id=self._position if is_empty else None)

    async def wait(self, seconds: float) -> None:
        """Wait until there is something to take, at most for this long."""
        with anyio.move_on_after(seconds):
            await self._changed.wait()

    def _check_size(self) -> None:
        if sum(len(event.data) for event in self._pending.values()) > MAX_PENDING_BYTES and self._position:
            self._drop_all(self._position)

    def _drop_all(self, position: str) -> None:
        self._pending = {}
        self._position = position
        self._reset = format_sse_event(event="reset", data_str="{}", id=position)

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._changed.set)
