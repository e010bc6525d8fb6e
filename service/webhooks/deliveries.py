"""One event on its way to one receiver: the record, the schedule, and the log of attempts. In Redis:

ivm:webhook:delivery:{id}        a hash whose values are JSON, one per field of `Delivery`; goes away by itself
ivm:webhook:due                  ids of what is pending, by the time (unix seconds) when somebody must look at them
ivm:webhook:deliveries:{owner}   the ids of an owner, and
ivm:webhook:of:{video}           those of a video, sorted by age
ivm:webhook:busy:{host}          attempts under way, by the time when they must have ended

An id stays in `due` until its delivery has ended; whoever takes it up only moves its time. So a process that dies
with a delivery in its hands loses nothing: the time comes, and another one takes it up. The number of attempts is the
fence: of two that want to make attempt n, one makes it.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from redis import Redis

from service.base import FrozenModel
from service.errors import WebhookDeliveryNotFound
from service.ids import new_id
from service.jobs.model import EventType
from service.jobs.outbox import Command
from service.webhooks.retry_policy import Next, State
from service.webhooks.sender import Outcome

DUE = "ivm:webhook:due"
KEEP_S = 8 * 86_400  # twice as long as the retries last
MAX_OF_OWNER = 10_000
MAX_LOGGED = 30  # attempts of one delivery; the newest stay
CLAIM_S = 120  # from being handed to the queue to being taken from it
GRACE_S = 30.0  # on top of the sender's own timeout, before an attempt counts as lost
BUSY_S = 0.5  # when to come back to a host that has its share already; doubles each time, up to 32 s

# KEYS: due. ARGV: now, again, limit.
_CLAIM = """
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])
for _, id in ipairs(ids) do redis.call('ZADD', KEYS[1], ARGV[2], id) end
return ids
"""

# KEYS: record, due, busy. ARGV: id, attempts so far, pending, now, when it counts as lost, share of the host, seconds
# until it may look again. Who finds the host busy comes back later and later: it has company.
_TAKE = """
local record = redis.call('HMGET', KEYS[1], 'state', 'attempts', 'taken_until', 'postponed')
local state, attempts, taken, postponed = unpack(record)
if state ~= ARGV[3] or attempts ~= ARGV[2] then return 'over' end
if taken and taken ~= 'null' and tonumber(taken) > tonumber(ARGV[4]) then return 'over' end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', ARGV[4])
if redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[6]) then
  redis.call('ZADD', KEYS[2], tonumber(ARGV[4]) + tonumber(ARGV[7]) * 2 ^ math.min(postponed, 6), ARGV[1])
  redis.call('HINCRBY', KEYS[1], 'postponed', 1)
  return 'busy'
end
redis.call('ZADD', KEYS[3], ARGV[5], ARGV[1])
redis.call('EXPIRE', KEYS[3], 3600)
redis.call('HSET', KEYS[1], 'attempts', tonumber(attempts) + 1, 'taken_until', ARGV[5], 'postponed', 0)
redis.call('ZADD', KEYS[2], ARGV[5], ARGV[1])
return 'taken'
"""

# KEYS: record, due, busy. ARGV: id, attempts with this one, pending, when next ("" = ended), then fields and values.
_FINISH = """
redis.call('ZREM', KEYS[3], ARGV[1])
local state, attempts = unpack(redis.call('HMGET', KEYS[1], 'state', 'attempts'))
if state ~= ARGV[3] or attempts ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'taken_until', 'null', unpack(ARGV, 5))
if ARGV[4] == '' then redis.call('ZREM', KEYS[2], ARGV[1]) else redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1]) end
return 1
"""

# KEYS: record, due. ARGV: id, pending, now, seconds to keep. An attempt under way is left alone.
_AGAIN = """
local state, attempts, taken = unpack(redis.call('HMGET', KEYS[1], 'state', 'attempts', 'taken_until'))
if not state then return 0 end
if state == ARGV[2] and taken and taken ~= 'null' and tonumber(taken) > tonumber(ARGV[3]) then return 1 end
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'started_with', attempts, 'ended_at', 'null', 'error', 'null',
  'next_attempt_at', ARGV[3], 'taken_until', 'null')
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
return 1
"""


class Attempt(FrozenModel):
    """`at` is unix seconds. Of what a receiver says only the status is kept."""

    at: float
    status_code: int | None
    error: str | None
    duration_s: float


class Delivery(FrozenModel):
    """Its id is the webhook-id of every attempt. `url` is set for a request's callback, else the endpoint has it."""

    id: str
    event_id: str
    event_type: EventType
    video_id: str
    owner: str
    endpoint_id: str | None = None
    url: str | None = None
    body: str
    state: State = State.PENDING
    attempts: int = 0
    started_with: int = 0  # attempts before the schedule began anew, by a redelivery
    created_at: float
    next_attempt_at: float | None = None
    taken_until: float | None = None
    postponed: int = 0
    ended_at: float | None = None
    error: str | None = None
    log: tuple[Attempt, ...] = ()


def new_delivery(**fields: Any) -> Delivery:
    now = time.time()
    return Delivery(id=new_id("whd"), created_at=now, next_attempt_at=now, **fields)


def commands_for(delivery: Delivery) -> list[Command]:
    """What writes a new delivery, for a transaction of somebody else's."""
    owner, video, record = owner_index(delivery.owner), video_index(delivery.video_id), key(delivery.id)
    fields = _encode(delivery.model_dump(mode="json"))
    return [
        ["HSET", record, *(part for pair in fields.items() for part in pair)],
        ["EXPIRE", record, str(KEEP_S)],
        ["ZADD", owner, "0", delivery.id],
        ["EXPIRE", owner, str(KEEP_S)],
        ["ZADD", video, "0", delivery.id],
        ["EXPIRE", video, str(KEEP_S)],
        ["ZADD", DUE, str(delivery.created_at), delivery.id],
    ]


class DeliveryStore:
    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # redis-py's types name every reply a command could have in any mode
        self._claim_script = self._redis.register_script(_CLAIM)
        self._take_script = self._redis.register_script(_TAKE)
        self._finish_script = self._redis.register_script(_FINISH)
        self._again_script = self._redis.register_script(_AGAIN)

    def find(self, delivery_id: str) -> Delivery | None:
        return _decode(self._redis.hgetall(key(delivery_id)))

    def get(self, owner: str, delivery_id: str) -> Delivery:
        """Raises WebhookDeliveryNotFound, for somebody else's too."""
        delivery = self.find(delivery_id)
        if delivery is None or delivery.owner != owner:
            raise WebhookDeliveryNotFound(delivery_id)
        return delivery

    def list(
        self, owner: str, *, video_id: str | None = None, limit: int = 20, after: str | None = None
    ) -> tuple[list[Delivery], bool]:
        """One page, newest first, and whether more follow."""
        index = video_index(video_id) if video_id else owner_index(owner)
        start = f"({after}" if after else "+"
        ids = self._redis.zrange(index, start, "-", desc=True, bylex=True, offset=0, num=limit + 1)
        with self._redis.pipeline(transaction=False) as pipe:
            for found in ids[:limit]:
                pipe.hgetall(key(found.decode()))
            records = pipe.execute()
        found = [delivery for record in records if (delivery := _decode(record))]
        return [delivery for delivery in found if delivery.owner == owner], len(ids) > limit

    def pending(self) -> int:
        """Of all owners: under way, or waiting for their time."""
        return self._redis.zcard(DUE)

    def claim(self, limit: int, *, now: float | None = None) -> list[tuple[str, int]]:
        """What is due: ids, and how many attempts each has had. They are due again after CLAIM_S."""
        now = time.time() if now is None else now
        ids = [found.decode() for found in self._claim_script([DUE], [now, now + CLAIM_S, limit])]
        with self._redis.pipeline(transaction=False) as pipe:
            for delivery_id in ids:
                pipe.hget(key(delivery_id), "attempts")
            counts = pipe.execute()
        gone = [delivery_id for delivery_id, count in zip(ids, counts, strict=True) if count is None]
        if gone:  # too old to be kept
            self._redis.zrem(DUE, *gone)
        return [(delivery_id, int(count)) for delivery_id, count in zip(ids, counts, strict=True) if count is not None]

    def take(self, delivery: Delivery, url: str, *, timeout_s: float, share: int) -> bool:
        """Begin the next attempt. False if it is somebody else's, or over, or the host has `share` under way."""
        now = time.time()
        keys = [key(delivery.id), DUE, _busy(url)]
        lost_at = now + timeout_s + GRACE_S
        come_back_s = BUSY_S * random.uniform(1, 1.5)  # noqa: S311  # not for secrets
        args = [delivery.id, delivery.attempts, json.dumps(State.PENDING), now, lost_at, share, come_back_s]
        return self._take_script(keys, args) == b"taken"

    def finish(self, delivery: Delivery, url: str, outcome: Outcome, then: Next) -> bool:
        """Write down what came of the attempt that `take` began on this record."""
        now = time.time()
        attempt = Attempt(
            at=now - outcome.duration_s,
            status_code=outcome.status_code,
            error=outcome.error,
            duration_s=outcome.duration_s,
        )
        log = (*delivery.log, attempt)[-MAX_LOGGED:]
        return self._settle(delivery, url, delivery.attempts + 1, then, log=log, error=outcome.error)

    def give_up(self, delivery: Delivery, error: str) -> bool:
        """End it without an attempt: there is nobody to tell any more."""
        return self._settle(
            delivery, delivery.url or "", delivery.attempts, Next(State.FAILED), log=delivery.log, error=error
        )

    def trim(self, owner: str) -> None:
        """Forget the oldest that have ended, beyond MAX_OF_OWNER."""
        old = [found.decode() for found in self._redis.zrange(owner_index(owner), 0, -1 - MAX_OF_OWNER)]
        ended = [found for found in old if (delivery := self.find(found)) is None or delivery.ended_at is not None]
        if ended:
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(*map(key, ended))
                pipe.zrem(owner_index(owner), *ended)
                pipe.execute()

    def redeliver(self, owner: str, delivery_id: str) -> Delivery:
        """Due at once, with the whole schedule before it and the same webhook-id. Raises WebhookDeliveryNotFound."""
        self.get(owner, delivery_id)
        args = [delivery_id, json.dumps(State.PENDING), json.dumps(time.time()), KEEP_S]
        self._again_script([key(delivery_id), DUE], args)
        return self.get(owner, delivery_id)

    def _settle(
        self, delivery: Delivery, url: str, attempts: int, then: Next, *, log: tuple[Attempt, ...], error: str | None
    ) -> bool:
        fields = {
            "state": then.state,
            "next_attempt_at": then.at,
            "ended_at": None if then.state is State.PENDING else time.time(),
            "error": error,
            "log": [attempt.model_dump() for attempt in log],
        }
        flat = [part for pair in _encode(fields).items() for part in pair]
        due = "" if then.at is None else then.at
        args = [delivery.id, attempts, json.dumps(State.PENDING), due, *flat]
        return bool(self._finish_script([key(delivery.id), DUE, _busy(url)], args))


def key(delivery_id: str) -> str:
    return f"ivm:webhook:delivery:{delivery_id}"


def owner_index(owner: str) -> str:
    return f"ivm:webhook:deliveries:{owner}"


def video_index(video_id: str) -> str:
    return f"ivm:webhook:of:{video_id}"


def _busy(url: str) -> str:
    return f"ivm:webhook:busy:{urlsplit(url).netloc}"


def _encode(fields: Mapping[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in fields.items()}


def _decode(record: Mapping[bytes, bytes]) -> Delivery | None:
    if not record:
        return None
    return Delivery.model_validate({name.decode(): json.loads(value) for name, value in record.items()})
