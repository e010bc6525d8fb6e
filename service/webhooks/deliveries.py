"""Deliveries: one event on its way to one receiver, with its due time and its log of attempts. In Redis:

ivm:webhook:delivery:{id}           a hash with one JSON value per field of `Delivery`; expires after KEEP_S
ivm:webhook:due                     ids of pending deliveries, scored by their due time (unix seconds)
ivm:webhook:deliveries:{owner}      an owner's ids, and
ivm:webhook:of:{video}              a video's ids, both in order of creation
ivm:webhook:queue:{owner}           an owner's due ids that wait for a dispatcher with room, and
ivm:webhook:queues                  the owners that have some, scored by when each was last served
ivm:webhook:busy:{owner}:{host}     ids of attempts in progress, scored by the time when each counts as lost
ivm:webhook:waiting:{owner}:{host}  ids that found the host at its limit, scored by the time when they first did

An id stays in `due` until its delivery has ended; queueing or claiming a delivery and starting an attempt only move its
due time. So a process that dies loses nothing: the due time comes, and another process takes over. The number of
attempts made is the fence: of several processes that want to make the same attempt, one does.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from redis import Redis

from service.errors import WebhookDeliveryNotFound
from service.frozen_model import FrozenModel
from service.ids import new_id
from service.jobs.model import EventType
from service.jobs.outbox import Command
from service.redis_records import decode_record, encode_fields, read_page_of, read_record, read_records
from service.redis_scripts import UntypedRedis, load_script
from service.webhooks.retry_policy import NextState, State
from service.webhooks.sender import Outcome
from service.webhooks.url_policy import host_of

log = logging.getLogger("ivmix.webhooks")

DUE = "ivm:webhook:due"
QUEUES = "ivm:webhook:queues"
QUEUE_PREFIX = "ivm:webhook:queue:"
KEEP_S = 8 * 86_400  # twice as long as the retries last
MAX_PER_OWNER = 10_000
MAX_LOGGED_ATTEMPTS = 30  # per delivery; the newest are kept
CLAIM_S = 120  # a claimed delivery becomes due again after this, unless an attempt was started
GRACE_S = 30.0  # on top of the sender's timeout, before an attempt counts as lost
POSTPONE_S = 0.5  # first wait for a host at its limit; doubles each time, up to 32 s


class Attempt(FrozenModel):
    """`at` is unix seconds. Of the receiver's reply only the status is kept."""

    at: float
    status_code: int | None
    error: str | None
    duration_s: float


class Delivery(FrozenModel):
    """`id` is the webhook-id of every attempt. Times are unix seconds."""

    id: str
    event_id: str
    event_type: EventType
    video_id: str
    owner: str
    endpoint_id: str | None = None  # None for the callback of a single request
    url: str | None = None  # of that callback; an endpoint's URL is read for every attempt
    body: str
    state: State = State.PENDING
    attempts: int = 0
    started_with: int = 0  # attempts made before the latest redelivery, which restarts the schedule
    created_at: float
    next_attempt_at: float | None = None
    taken_until: float | None = None  # while an attempt is in progress: when it counts as lost
    postponed: int = 0  # how often in a row the host was at its limit
    ended_at: float | None = None
    error: str | None = None
    log: tuple[Attempt, ...] = ()
    traceparent: str | None = None  # W3C trace context of the video's request, if it was traced
    is_test: bool = False  # a sample event: one attempt, also to a disabled endpoint


class Claim(NamedTuple):
    delivery_id: str
    attempts_made: int
    owner: str


def new_delivery(**fields: Any) -> Delivery:
    now = time.time()
    return Delivery(id=new_id("whd"), created_at=now, next_attempt_at=now, **fields)


def creation_commands(delivery: Delivery) -> list[Command]:
    """The Redis commands that store a new delivery, to be run in the caller's transaction."""
    owner, video, record = owner_index(delivery.owner), video_index(delivery.video_id), key(delivery.id)
    # Dispatchers of earlier versions, which may still run, refuse a field that they do not know.
    newer = {"is_test", "traceparent"}
    fields = delivery.model_dump(mode="json", exclude={name for name in newer if not getattr(delivery, name)})
    return [
        ["HSET", record, *encode_fields(fields)],
        ["EXPIRE", record, str(KEEP_S)],
        ["ZADD", owner, "0", delivery.id],
        ["EXPIRE", owner, str(KEEP_S)],
        ["ZADD", video, "0", delivery.id],
        ["EXPIRE", video, str(KEEP_S)],
        ["ZADD", DUE, str(delivery.created_at), delivery.id],
    ]


class DeliveryStore:
    def __init__(self, redis: Redis) -> None:
        self._redis: UntypedRedis = redis
        self._claim_due, self._start_attempt, self._update, self._redeliver = (
            load_script(redis, "service.webhooks", name)
            for name in ("claim_due", "start_attempt", "update", "redeliver")
        )

    def find(self, delivery_id: str) -> Delivery | None:
        """Return the delivery; None if there is none, or if its record is damaged, so that no attempt is made."""
        try:
            return decode_record(Delivery, read_record(self._redis, key(delivery_id)))
        except ValueError as e:
            log.error("%s: giving up, the record of the delivery is damaged: %s", delivery_id, e)
            self._redis.zrem(DUE, delivery_id)
            return None

    def get(self, owner: str, delivery_id: str) -> Delivery:
        """Raises WebhookDeliveryNotFound, also for another owner's delivery."""
        delivery = self.find(delivery_id)
        if delivery is None or delivery.owner != owner:
            raise WebhookDeliveryNotFound(delivery_id)
        return delivery

    def list(
        self, owner: str, *, video_id: str | None = None, limit: int = 20, after: str | None = None
    ) -> tuple[list[Delivery], bool]:
        """One page, newest first, and whether more follow. `after` is an id."""
        index = video_index(video_id) if video_id else owner_index(owner)
        return read_page_of(self._redis, index, lambda ids: self._read(owner, ids), limit=limit, after=after)

    def _read(self, owner: str, ids: Sequence[str]) -> Iterator[Delivery | None]:
        for record in read_records(self._redis, map(key, ids)):
            try:
                delivery = decode_record(Delivery, record)
            except ValueError:
                delivery = None
            yield delivery if delivery is not None and delivery.owner == owner else None

    def pending(self) -> int:
        """How many deliveries of all owners have not ended."""
        return self._redis.zcard(DUE)

    def create(self, delivery: Delivery) -> None:
        with self._redis.pipeline(transaction=True) as pipe:
            for command in creation_commands(delivery):
                pipe.execute_command(*command)
            pipe.execute()
        self.trim(delivery.owner)

    def claim(
        self, capacity: int, *, in_progress: Mapping[str, int] | None = None, now: float | None = None
    ) -> list[Claim]:
        """Claim due deliveries for CLAIM_S, fairly among owners.

        Args:
            capacity: number of attempts that the caller makes at the same time.
            in_progress: how many of those it is making for each owner.
        """
        now = time.time() if now is None else now
        busy = [part for owner_and_count in (in_progress or {}).items() for part in owner_and_count]
        reply = self._claim_due([DUE, QUEUES], [now, now + CLAIM_S, capacity, key(""), QUEUE_PREFIX, *busy])
        parts = iter(reply)
        return [
            Claim(delivery_id.decode(), int(attempts), owner.decode())
            for delivery_id, attempts, owner in zip(parts, parts, parts, strict=True)
        ]

    def start_attempt(self, delivery: Delivery, url: str, *, timeout_s: float, per_host_limit: int) -> bool:
        """False if it has ended, another process makes this attempt, or its owner has `per_host_limit` at the host."""
        now = time.time()
        keys = [key(delivery.id), DUE, *_host_keys(delivery.owner, url)]
        lost_at = now + timeout_s + GRACE_S
        postpone_s = POSTPONE_S * random.uniform(1, 1.5)  # noqa: S311  # not for secrets
        args = [delivery.id, delivery.attempts, json.dumps(State.PENDING), now, lost_at, per_host_limit, postpone_s]
        return bool(self._start_attempt(keys, args))

    def finish_attempt(self, delivery: Delivery, url: str, outcome: Outcome, following: NextState) -> bool:
        """Store the outcome of the attempt started on `delivery`. False if the attempt had counted as lost."""
        attempt = Attempt(
            at=time.time() - outcome.duration_s,
            status_code=outcome.status_code,
            error=outcome.error,
            duration_s=outcome.duration_s,
        )
        log = (*delivery.log, attempt)[-MAX_LOGGED_ATTEMPTS:]
        finished = delivery.model_copy(update={"attempts": delivery.attempts + 1, "log": log})
        return self._store(finished, url, following, error=outcome.error)

    def fail(self, delivery: Delivery, error: str) -> bool:
        """End a delivery without another attempt."""
        return self._store(delivery, delivery.url or "", NextState(State.FAILED), error=error)

    def trim(self, owner: str) -> None:
        """Delete the owner's oldest ended deliveries beyond MAX_PER_OWNER."""
        old = [found.decode() for found in self._redis.zrange(owner_index(owner), 0, -1 - MAX_PER_OWNER)]
        ended = [found for found in old if (delivery := self.find(found)) is None or delivery.ended_at is not None]
        if ended:
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(*map(key, ended))
                pipe.zrem(owner_index(owner), *ended)
                pipe.execute()

    def redeliver(self, owner: str, delivery_id: str) -> Delivery:
        """Make it due now, under the same webhook-id and with the whole retry schedule ahead.

        Raises:
            WebhookDeliveryNotFound: also for another owner's delivery.
        """
        self.get(owner, delivery_id)
        args = [delivery_id, json.dumps(State.PENDING), json.dumps(time.time()), KEEP_S]
        self._redeliver([key(delivery_id), DUE], args)
        return self.get(owner, delivery_id)

    def _store(self, delivery: Delivery, url: str, following: NextState, *, error: str | None) -> bool:
        """False if another attempt has been started since."""
        now = time.time()
        fields = {
            "state": following.state,
            "next_attempt_at": following.attempt_at,
            "ended_at": None if following.state is State.PENDING else now,
            "error": error,
            "log": [attempt.model_dump() for attempt in delivery.log],
        }
        due = "" if following.attempt_at is None else following.attempt_at
        args = [delivery.id, delivery.attempts, json.dumps(State.PENDING), now, due, *encode_fields(fields)]
        return bool(self._update([key(delivery.id), DUE, *_host_keys(delivery.owner, url)], args))


def key(delivery_id: str) -> str:
    return f"ivm:webhook:delivery:{delivery_id}"


def owner_index(owner: str) -> str:
    return f"ivm:webhook:deliveries:{owner}"


def video_index(video_id: str) -> str:
    return f"ivm:webhook:of:{video_id}"


def _host_keys(owner: str, url: str) -> tuple[str, str]:
    """By owner: on a host that several owners use, one with slow paths must not delay the others."""
    host = host_of(url)
    return f"ivm:webhook:busy:{owner}:{host}", f"ivm:webhook:waiting:{owner}:{host}"
