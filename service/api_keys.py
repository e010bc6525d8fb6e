"""API keys in Redis: who may do what. Knows hashes only; a key itself is shown once, when it is made.

The hash `ivm:keys` holds one JSON record per key under the SHA-256 of the key. That is enough, without salt or
stretching: a key is 256 bits of chance, not a password somebody chose.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable
from enum import StrEnum
from threading import Lock
from typing import Any

from pydantic import Field
from redis import Redis

from service.base import FrozenModel

KEYS = "ivm:keys"
LAST_USED = "ivm:keys:last_used"
REMEMBERED_S = 5.0  # how late an API process hears that a key was revoked
REMEMBERED = 10_000  # keys; more than that are looked up again


class Scope(StrEnum):
    READ = "videos.read"
    WRITE = "videos.write"
    WEBHOOKS = "webhooks"
    ADMIN = "admin"  # the videos of all keys


DEFAULT_SCOPES = frozenset({Scope.READ, Scope.WRITE, Scope.WEBHOOKS})


class ApiKey(FrozenModel):
    """Times are unix seconds. `owner` is whose videos it makes and sees: its own id, or that of the key it replaces."""

    id: str
    owner: str
    name: str = Field(min_length=1, max_length=100)
    scopes: frozenset[Scope] = DEFAULT_SCOPES
    created_at: float
    revoked_at: float | None = None
    requests_per_minute: int | None = Field(default=None, ge=1)
    max_waiting: int | None = Field(default=None, ge=1)


class KeyStore:
    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # redis-py's types name every reply a command could have in any mode
        self._remembered: dict[str, tuple[float, ApiKey]] = {}
        self._lock = Lock()

    def create(
        self,
        name: str,
        *,
        scopes: Iterable[Scope] = DEFAULT_SCOPES,
        owner: str | None = None,
        requests_per_minute: int | None = None,
        max_waiting: int | None = None,
    ) -> tuple[ApiKey, str]:
        """The record, and the key itself, which is nowhere else."""
        key_id = f"key_{secrets.token_hex(8)}"
        made = ApiKey(
            id=key_id,
            owner=owner or key_id,
            name=name,
            scopes=frozenset(scopes),
            created_at=time.time(),
            requests_per_minute=requests_per_minute,
            max_waiting=max_waiting,
        )
        secret = f"ivmix_{secrets.token_urlsafe(32)}"
        self._redis.hset(KEYS, _digest(secret), made.model_dump_json())
        return made, secret

    def remembered(self, secret: str) -> ApiKey | None:
        """What was found lately, without asking Redis."""
        until, key = self._remembered.get(_digest(secret), (0.0, None))
        return key if time.monotonic() < until else None

    def find(self, secret: str) -> ApiKey | None:
        """None for an unknown or revoked key."""
        digest = _digest(secret)
        found = self._redis.hget(KEYS, digest)
        key = ApiKey.model_validate_json(found) if found else None
        with self._lock:
            self._remembered.pop(digest, None)
            if key is None or key.revoked_at is not None:
                return None
            while len(self._remembered) >= REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
            self._remembered[digest] = (time.monotonic() + REMEMBERED_S, key)
        self._redis.hset(LAST_USED, key.id, int(time.time()))
        return key

    def list(self) -> list[tuple[ApiKey, float | None]]:
        """All keys, oldest first, and when each was last used."""
        records, used = self._redis.hgetall(KEYS), self._redis.hgetall(LAST_USED)
        keys = sorted(map(ApiKey.model_validate_json, records.values()), key=lambda key: key.created_at)
        return [(key, float(used[key.id.encode()]) if key.id.encode() in used else None) for key in keys]

    def revoke(self, key_id: str) -> ApiKey | None:
        """None if there is no such key; revoking twice is fine."""
        for digest, record in self._redis.hgetall(KEYS).items():
            key = ApiKey.model_validate_json(record)
            if key.id == key_id:
                revoked = key.model_copy(update={"revoked_at": key.revoked_at or time.time()})
                self._redis.hset(KEYS, digest, revoked.model_dump_json())
                return revoked
        return None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
