"""API keys in Redis: owner, scopes and limits of each key.

Only the SHA-256 of a key is stored. A key is 256 random bits and so, unlike a password, needs no salt or stretching.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Iterable
from threading import Lock

from pydantic import Field
from redis import Redis

from service.errors import NotReplicated
from service.frozen_model import FrozenModel
from service.redis_connection.replication import Replication
from service.redis_scripts import UntypedRedis
from service.scopes import DEFAULT_SCOPES, Scope

__all__ = ["CACHE_S", "DEFAULT_SCOPES", "KEYS", "ApiKey", "KeyStore", "Scope"]

log = logging.getLogger("ivmix.api")

KEYS = "ivm:keys"  # hash: SHA-256 of the key -> ApiKey as JSON
LAST_USED = "ivm:keys:last_used"  # hash: key id -> unix seconds
CACHE_S = 5.0  # a revoked key works for up to this long in other API processes
CACHE_SIZE = 10_000  # keys


class ApiKey(FrozenModel):
    """The stored record of a key. Times are unix seconds."""

    id: str  #: public id, `key_` and 16 hex digits
    owner: str  #: owner of the videos that the key creates and sees: the key's id, or that of the key it replaces
    name: str = Field(min_length=1, max_length=100)  #: label for humans
    scopes: frozenset[Scope] = DEFAULT_SCOPES  #: what the key may do
    created_at: float  #: when the key was created
    revoked_at: float | None = None  #: when the key was revoked
    #: most requests per minute that create videos; None means the server's default
    requests_per_minute: int | None = Field(default=None, ge=1)
    max_waiting: int | None = Field(default=None, ge=1)  #: most queued videos; None means the server's default
    #: most GPU seconds per UTC day; None means the server's default. Left out then: version 0.1 does not know it.
    gpu_seconds_per_day: int | None = Field(default=None, ge=1, exclude_if=lambda seconds: seconds is None)


class KeyStore:
    def __init__(self, redis: Redis, replication: Replication = Replication()) -> None:  # noqa: B008  # immutable
        """`replication` is of keys that are created and revoked."""
        self._redis: UntypedRedis = redis
        self._replication = replication
        self._cache: dict[str, tuple[float, ApiKey]] = {}
        self._lock = Lock()

    def create(
        self,
        name: str,
        *,
        scopes: Iterable[Scope] = DEFAULT_SCOPES,
        owner: str | None = None,
        requests_per_minute: int | None = None,
        max_waiting: int | None = None,
        gpu_seconds_per_day: int | None = None,
    ) -> tuple[ApiKey, str]:
        """Create a key. Returns its record and the key itself, which is not stored and cannot be shown again.

        Args:
            owner: id of the key whose videos the new key shares; default: the new key's own id.

        Raises:
            NotReplicated: too few replicas have the key. It is deleted again.
        """
        key_id = f"key_{secrets.token_hex(8)}"
        record = ApiKey(
            id=key_id,
            owner=owner or key_id,
            name=name,
            scopes=frozenset(scopes),
            created_at=time.time(),
            requests_per_minute=requests_per_minute,
            max_waiting=max_waiting,
            gpu_seconds_per_day=gpu_seconds_per_day,
        )
        secret = f"ivmix_{secrets.token_urlsafe(32)}"
        try:
            self._replication.run(self._redis, "HSET", KEYS, digest_of(secret), record.model_dump_json())
        except NotReplicated:  # its secret is not shown, so it is useless
            self._redis.hdel(KEYS, digest_of(secret))
            raise
        return record, secret

    def find_cached(self, digest: str) -> ApiKey | None:
        """Return a key that `find` returned within the last CACHE_S seconds, without a call to Redis."""
        until, key = self._cache.get(digest, (0.0, None))
        return key if time.monotonic() < until else None

    def find(self, digest: str) -> ApiKey | None:
        """Look up a key by its `digest_of` and record its use. None if it is unknown or revoked."""
        found = self._redis.hget(KEYS, digest)
        key = _decode(found) if found else None
        with self._lock:
            self._cache.pop(digest, None)
            if key is None or key.revoked_at is not None:
                return None
            while len(self._cache) >= CACHE_SIZE:
                self._cache.pop(next(iter(self._cache)))
            self._cache[digest] = (time.monotonic() + CACHE_S, key)
        self._redis.hset(LAST_USED, key.id, int(time.time()))
        return key

    def list(self) -> list[tuple[ApiKey, float | None]]:
        """Return all keys but damaged ones, oldest first, each with the unix time of its last use."""
        records, used = self._redis.hgetall(KEYS), self._redis.hgetall(LAST_USED)
        keys = sorted(filter(None, map(_decode, records.values())), key=lambda key: key.created_at)
        return [(key, float(used[key.id.encode()]) if key.id.encode() in used else None) for key in keys]

    def revoke(self, key_id: str) -> ApiKey | None:
        """Revoke a key; None if there is no such key. Revoking it again keeps the first time."""
        for digest, record in self._redis.hgetall(KEYS).items():
            key = _decode(record)
            if key is not None and key.id == key_id:
                revoked = key.model_copy(update={"revoked_at": key.revoked_at or time.time()})
                self._replication.run(self._redis, "HSET", KEYS, digest, revoked.model_dump_json())
                return revoked
        return None


def _decode(record: bytes) -> ApiKey | None:
    """Return the key; None for a damaged record, which authenticates no client."""
    try:
        return ApiKey.model_validate_json(record)
    except ValueError as e:
        log.error("ignoring an API key, its record is damaged: %s", e)
        return None


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
