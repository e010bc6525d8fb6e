"""A page that follows GET /v1/events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

Event = dict[str, Any]


def read_events(lines: Iterator[str]) -> Iterator[Event]:
    """Every message that has a name, data or an id, with data from JSON."""
    event: Event = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if not line:
            if event:
                yield event
            event = {}
        elif name in ("event", "id", "data"):
            event[name] = json.loads(value) if name == "data" else value


class Page:
    def __init__(self, answer: httpx2.Response) -> None:
        self._events = read_events(answer.iter_lines())
        self.last_id = ""
        self.start = self._next()  # a message without data, or the first event if some were missed

    def next(self, *, queue: bool = False) -> Event:
        """The next event; without `queue` those of the queue are left out."""
        while True:
            event = self._next()
            if "event" in event and (queue or event["event"] != "queue"):
                return event

    def rest(self) -> list[Event]:
        """All events until the server ends the stream."""
        return list(self._events)

    def _next(self) -> Event:
        event = next(self._events)
        self.last_id = event.get("id", self.last_id)
        return event


@contextmanager
def open_page(
    http: httpx2.Client, *, after: str | None = None, headers: dict[str, str] | None = None
) -> Iterator[Page]:
    headers = (headers or {}) | ({"last-event-id": after} if after else {})
    with http.stream("GET", "/v1/events", headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        page = Page(answer)  # as long as it exists the connection is open
        yield page
