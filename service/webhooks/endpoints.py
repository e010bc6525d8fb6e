"""Registered webhook endpoints, and the secrets that sign the callbacks of single requests. In Redis:

ivm:webhook:endpoint:{id}       one endpoint, as JSON
ivm:webhook:endpoints:{owner}   an owner's ids, in order of creation
ivm:webhook:secret:{owner}      an owner's callback secrets, as JSON
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter
from redis import Redis

from service.errors import InvalidParameter, WebhookEndpointNotFound
from service.frozen_model import FrozenModel
from service.ids import new_id
from service.jobs.model import EventType
from service.jobs.outbox import LISTENERS
from service.redis_records import read_page_of
from service.redis_scripts import UntypedRedis
from service.webhooks.signature import Secrets, active, new_secret, rotated

log = logging.getLogger("ivmix.webhooks")

MAX_ENDPOINTS = 50  # per owner; each event is delivered to every one
KEEP_OLD_SECRET_S = 86_400.0

_SECRETS = TypeAdapter(Secrets)


class Endpoint(FrozenModel):
    """Times are unix seconds. A reply of 410 Gone disables an endpoint until it is updated."""

    id: str
    owner: str
    name: str
    url: str
    event_types: tuple[EventType, ...]
    secrets: Secrets
    created_at: float
    updated_at: float
    disabled_at: float | None = None

    @property
    def is_enabled(self) -> bool:
        return self.disabled_at is None


class EndpointStore:
    """Another owner's endpoint counts as not found."""

    def __init__(self, redis: Redis) -> None:
        self._redis: UntypedRedis = redis

    def create(self, owner: str, *, name: str, url: str, event_types: tuple[EventType, ...]) -> Endpoint:
        now = time.time()
        endpoint = Endpoint(
            id=new_id("we"),
            owner=owner,
            name=name,
            url=url,
            event_types=event_types,
            secrets=(new_secret(),),
            created_at=now,
            updated_at=now,
        )

        def write(pipe: Any) -> None:
            if pipe.zcard(_index(owner)) >= MAX_ENDPOINTS:
                raise InvalidParameter(
                    None,
                    f"You already have {MAX_ENDPOINTS} webhook endpoints, the maximum; delete one first.",
                    "too_many_endpoints",
                )
            pipe.multi()
            pipe.set(_key(endpoint.id), endpoint.model_dump_json())
            pipe.zadd(_index(owner), {endpoint.id: 0})
            pipe.sadd(LISTENERS, json.dumps(owner))

        self._redis.transaction(write, _index(owner))
        return endpoint

    def get(self, owner: str, endpoint_id: str) -> Endpoint:
        """Raises WebhookEndpointNotFound."""
        endpoint = self.find(endpoint_id)
        if endpoint is None or endpoint.owner != owner:
            raise WebhookEndpointNotFound(endpoint_id)
        return endpoint

    def find(self, endpoint_id: str) -> Endpoint | None:
        return _decode(self._redis.get(_key(endpoint_id)))

    def list(self, owner: str, *, limit: int = 20, after: str | None = None) -> tuple[list[Endpoint], bool]:
        """One page, newest first, and whether more follow. `after` is an id, also of a deleted endpoint."""
        return read_page_of(self._redis, _index(owner), self._read, limit=limit, after=after)

    def _read(self, ids: list[str]) -> list[Endpoint | None]:
        return [_decode(value) for value in self._redis.mget(map(_key, ids))] if ids else []

    def subscribed(self, owner: str, event_type: EventType) -> list[Endpoint]:
        """The enabled endpoints that receive this type of event."""
        endpoints, _ = self.list(owner, limit=MAX_ENDPOINTS)
        return [endpoint for endpoint in endpoints if endpoint.is_enabled and event_type in endpoint.event_types]

    def update(self, owner: str, endpoint_id: str, **changes: Any) -> Endpoint:
        """Change fields; a disabled endpoint is enabled again. Raises WebhookEndpointNotFound."""
        return self._change(
            owner, endpoint_id, lambda endpoint: endpoint.model_copy(update={**changes, "disabled_at": None})
        )

    def rotate(self, owner: str, endpoint_id: str, *, keep_old: bool) -> Endpoint:
        """Replace the secret; `keep_old` keeps the old one valid for a day. Raises WebhookEndpointNotFound."""
        return self._change(
            owner,
            endpoint_id,
            lambda endpoint: endpoint.model_copy(update={"secrets": _rotated(endpoint.secrets, keep_old)}),
        )

    def disable(self, endpoint_id: str) -> None:
        endpoint = self.find(endpoint_id)
        if endpoint is not None:
            self._change(
                endpoint.owner, endpoint_id, lambda found: found.model_copy(update={"disabled_at": time.time()})
            )

    def delete(self, owner: str, endpoint_id: str) -> None:
        """Delete an endpoint, also one whose record is damaged. Raises WebhookEndpointNotFound."""
        if self._redis.zscore(_index(owner), endpoint_id) is None:
            raise WebhookEndpointNotFound(endpoint_id)

        def write(pipe: Any) -> None:
            is_last = pipe.zrange(_index(owner), 0, -1) == [endpoint_id.encode()]
            pipe.multi()
            pipe.delete(_key(endpoint_id))
            pipe.zrem(_index(owner), endpoint_id)
            if is_last:
                pipe.srem(LISTENERS, json.dumps(owner))

        self._redis.transaction(write, _index(owner))

    def callback_secrets(self, owner: str) -> Secrets:
        """The secrets that sign the callbacks of this owner's requests; created on first use."""
        self._redis.set(_secret_key(owner), _SECRETS.dump_json((new_secret(),)), nx=True)
        return active(_SECRETS.validate_json(self._redis.get(_secret_key(owner))), now=time.time())

    def rotate_callback_secret(self, owner: str, *, keep_old: bool) -> Secrets:
        """Replace the callback secret; `keep_old` keeps the old one valid for a day."""
        self.callback_secrets(owner)

        def write(pipe: Any) -> Secrets:
            secrets = _rotated(_SECRETS.validate_json(pipe.get(_secret_key(owner))), keep_old)
            pipe.multi()
            pipe.set(_secret_key(owner), _SECRETS.dump_json(secrets))
            return secrets

        return self._redis.transaction(write, _secret_key(owner), value_from_callable=True)

    def _change(self, owner: str, endpoint_id: str, change: Callable[[Endpoint], Endpoint]) -> Endpoint:
        """`updated_at` advances only if something has changed."""

        def write(pipe: Any) -> Endpoint:
            found = _decode(pipe.get(_key(endpoint_id)))
            if found is None or found.owner != owner:
                raise WebhookEndpointNotFound(endpoint_id)
            changed = change(found)
            if changed != found:
                changed = changed.model_copy(update={"updated_at": time.time()})
            pipe.multi()
            pipe.set(_key(endpoint_id), changed.model_dump_json())
            return changed

        return self._redis.transaction(write, _key(endpoint_id), value_from_callable=True)


def _rotated(secrets: Secrets, keep_old: bool) -> Secrets:
    return rotated(secrets, keep_old_s=KEEP_OLD_SECRET_S if keep_old else 0.0, now=time.time())


def _decode(value: bytes | None) -> Endpoint | None:
    """Return the endpoint; None if there is none or its record is damaged."""
    try:
        return None if value is None else Endpoint.model_validate_json(value)
    except ValueError as e:
        log.error("ignoring a webhook endpoint, its record is damaged: %s", e)
        return None


def _key(endpoint_id: str) -> str:
    return f"ivm:webhook:endpoint:{endpoint_id}"


def _index(owner: str) -> str:
    return f"ivm:webhook:endpoints:{owner}"


def _secret_key(owner: str) -> str:
    return f"ivm:webhook:secret:{owner}"
