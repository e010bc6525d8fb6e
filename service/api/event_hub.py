"""Follows the stream of changes once per process, for all clients of GET /v1/events.

A thread runs while there are clients. It reads what has changed, reads the records of those videos, and gives every
client the events that it may see.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Sequence, Set
from contextlib import contextmanager
from threading import Lock, Thread

from fastapi.sse import format_sse_event
from redis import exceptions

from service.api.event_subscription import Event, Subscription
from service.api.queue_snapshot import Audience, QueueSnapshot
from service.api.schemas import DeletedVideo
from service.api.sse import event_name
from service.jobs.event_log import READ_AT_ONCE, START, Change, EventLog, newest_of_each
from service.jobs.model import Job
from service.wiring import Services

INTERVAL_S = 0.5  # between two reads, which bounds the events of one video
QUEUE_INTERVAL_S = 2.0
WAIT_S = 1.0  # for a change; an outage is noticed and the thread ends within it
RETRY_S = 1.0
RECORDS_AT_ONCE = 50
LOCK_TIMEOUT_S = 5.0
MOST_MISSED = 2000  # entries that a client which reconnects is sent; beyond it reads the lists again

log = logging.getLogger("ivmix.events")


class EventHub:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._renderer = services.renderer
        self._log = EventLog(services.redis)
        self._starting = Lock()  # held while the position is read
        self._lock = Lock()  # protects the next three; never held while Redis is called
        self._subscriptions: set[Subscription] = set()
        self._thread: Thread | None = None
        self._position = START  # of the thread: everything up to here has been, or is being, given to clients
        self._queues = _QueueCache(services)

    def subscribe(self, subscription: Subscription) -> None:
        """Give it the state of the queue, what was missed after its `after`, and from now on every event. Blocks."""
        position = self._register(subscription)
        subscription.set_queue(self._queues.reports({subscription.audience})[subscription.audience])
        after = subscription.after or position
        # Another process may have been further: what follows `position` comes again, as new events.
        missed = [] if after == position else self._log.read(after, limit=MOST_MISSED)
        if missed is None or len(missed) == MOST_MISSED:
            return subscription.reset(position)
        audience = subscription.audience
        batches = self._batches(missed, {audience})
        subscription.add_missed([event for batch in batches for event in batch if audience.sees(event.owner)], position)

    def unsubscribe(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions.discard(subscription)

    def _register(self, subscription: Subscription) -> str:
        """Add the subscription, start the thread if there is none, and return its position."""
        with _held(self._starting):
            with self._lock:
                is_running = self._thread is not None
                if is_running:
                    self._subscriptions.add(subscription)
                    return self._position
            position = self._log.last()
            with self._lock:
                self._subscriptions.add(subscription)
                self._position = position
                self._thread = Thread(target=self._run, name="events", daemon=True)
                self._thread.start()
            return position

    def _run(self) -> None:
        is_failing = False
        while self._has_subscriptions():
            try:
                self._follow()
                self._report_queues()
                is_failing = False
            except Exception as e:  # the thread must live as long as there are clients
                if not self._has_subscriptions():  # the process is stopping
                    return
                if not is_failing:
                    is_failing = True
                    log.warning("events are delayed: %s", e, exc_info=not isinstance(e, exceptions.RedisError))
                time.sleep(RETRY_S)

    def _has_subscriptions(self) -> bool:
        with self._lock:
            if not self._subscriptions:
                self._thread = None
            return bool(self._subscriptions)

    def _follow(self) -> None:
        """Wait for changes and give them to the clients that are connected by then."""
        self._log.wait(self._position, WAIT_S)
        changes = self._log.read(self._position)
        if changes is None:
            return self._reset(self._log.last())
        if not changes:
            return
        with self._lock:  # a client that connects from here on reads these changes itself
            clients, self._position = list(self._subscriptions), changes[-1].entry
        try:
            self._deliver(changes, clients)
        except Exception:
            for client in clients:
                client.reset(changes[-1].entry)
            raise
        if len(changes) < READ_AT_ONCE:
            time.sleep(INTERVAL_S)

    def _deliver(self, changes: Sequence[Change], clients: Sequence[Subscription]) -> None:
        for batch in self._batches(changes, {client.audience for client in clients}):
            for client in clients:
                client.add([event for event in batch if client.audience.sees(event.owner)], batch[-1].entry)
        for client in clients:
            client.add([], changes[-1].entry)

    def _reset(self, position: str) -> None:
        """Entries were lost: trimmed before they were read, or Redis has lost the stream."""
        log.warning("events were lost; clients read their lists again")
        with self._lock:
            clients, self._position = list(self._subscriptions), position
        for client in clients:
            client.reset(position)

    def _report_queues(self) -> None:
        with self._lock:
            clients = list(self._subscriptions)
        reports = self._queues.reports({client.audience for client in clients})
        for client in clients:
            client.set_queue(reports[client.audience])

    def _batches(self, changes: Sequence[Change], audiences: Set[Audience]) -> Iterator[list[Event]]:
        """The events of the changes that one of the audiences may see, with the records as they are now."""
        wanted = [change for change in newest_of_each(changes) if _may_concern(change, audiences)]
        for start in range(0, len(wanted), RECORDS_AT_ONCE):
            batch = wanted[start : start + RECORDS_AT_ONCE]
            jobs = self._services.store.view_many([change.video_id for change in batch])
            yield [self._event(change, job, audiences) for change, job in zip(batch, jobs, strict=True)]

    def _event(self, change: Change, job: Job | None, audiences: Set[Audience]) -> Event:
        if job is None:
            name, body = "video.deleted", DeletedVideo(id=change.video_id).model_dump_json()
        else:
            name = "video.created" if change.is_new and not job.state.is_terminal else event_name(job)
            body = self._renderer.video(job).model_dump_json()
        owner = (job.owner if job else "") or change.owner or self._indexed_owner(change.video_id, audiences)
        return Event(change.video_id, owner, change.entry, format_sse_event(event=name, data_str=body, id=change.entry))

    def _indexed_owner(self, video_id: str, audiences: Set[Audience]) -> str | None:
        """Whose index has a video whose record is damaged."""
        owners = {audience.visible_owner for audience in audiences}
        store = self._services.store
        return next((owner for owner in owners if owner is not None and store.is_in_index(video_id, owner)), None)


@contextmanager
def _held(lock: Lock) -> Generator[None]:
    """Hold a lock under which Redis is called. Raises TimeoutError if its holder waits for Redis too long."""
    if not lock.acquire(timeout=LOCK_TIMEOUT_S):
        raise exceptions.TimeoutError("Redis does not answer")
    try:
        yield
    finally:
        lock.release()


def _may_concern(change: Change, audiences: Set[Audience]) -> bool:
    return change.owner is None or any(audience.sees(change.owner) for audience in audiences)


class _QueueCache:
    """One snapshot of the queues for all clients, and the report of each audience, at most QUEUE_INTERVAL_S old."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = Lock()  # held while Redis is called
        self._read_at = -QUEUE_INTERVAL_S
        self._snapshot: QueueSnapshot | None = None
        self._reports: dict[Audience, str] = {}

    def reports(self, audiences: Set[Audience]) -> dict[Audience, str]:
        with _held(self._lock):
            if self._snapshot is None or time.monotonic() - self._read_at >= QUEUE_INTERVAL_S:
                self._snapshot, self._reports = QueueSnapshot.read(self._services), {}
                self._read_at = time.monotonic()
            new = self._snapshot.reports(self._services, audiences - self._reports.keys())
            self._reports |= {audience: report.model_dump_json() for audience, report in new.items()}
            return {audience: self._reports[audience] for audience in audiences}
