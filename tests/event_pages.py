"""A page that follows GET /v1/events."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from service import api_keys
from service.api import event_hub, sse

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
        self._events: Iterator[Event] = read_events(answer.iter_lines())
        self.last_id = ""
        start = self._next()
        self.start_id = start.get("id", "")  # from which to resume before the first event
        if "event" in start:
            self._events = itertools.chain([start], self._events)

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


def quick_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter intervals, so that tests take less time."""
    monkeypatch.setattr(sse, "POLL_INTERVAL_S", 0.05)
    monkeypatch.setattr(event_hub, "INTERVAL_S", 0.02)
    monkeypatch.setattr(event_hub, "WAIT_S", 0.1)
    monkeypatch.setattr(event_hub, "RETRY_S", 0.1)
    monkeypatch.setattr(event_hub, "QUEUE_INTERVAL_S", 0.1)
    monkeypatch.setattr(api_keys, "CACHE_S", 0.1)


def hub_threads() -> int:
    """How many threads of this process follow the stream of changes."""
    return sum(thread.name == "events" for thread in threading.enumerate())
