"""HMAC signatures for what a browser carries instead of an API key: URLs of files, and sessions.

All processes share one random secret, in Redis: a program that can read Redis can read every video anyway.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from threading import Lock, Thread

from redis import Redis
from redis.exceptions import RedisError

from service.redis_scripts import UntypedRedis

SECRET_KEY = "ivm:signing_secret"  # noqa: S105  Redis key of 32 random bytes
CACHE_S = 60.0  # after a loss of Redis, processes agree on the new secret about within this time


class Signer:
    """Reads the secret once before the first signature, and from then on in the background."""

    def __init__(self, redis: Redis) -> None:
        self._redis: UntypedRedis = redis
        self._secret, self._until = b"", 0.0
        self._reading = Lock()

    @property
    def is_loaded(self) -> bool:
        """Whether `sign` and `is_valid` return without a call to Redis."""
        return bool(self._secret)

    def load(self) -> None:
        """Read the secret; the first process makes it."""
        secret = self._redis.get(SECRET_KEY)
        if secret is None:
            self._redis.set(SECRET_KEY, secrets.token_bytes(32), nx=True)
            secret = self._redis.get(SECRET_KEY)
        self._secret, self._until = secret, time.monotonic() + CACHE_S

    def sign(self, *parts: str) -> str:
        """The signature of the parts, 43 characters that are safe in a URL. The first part names the purpose."""
        message = b"\0".join(part.encode(errors="surrogatepass") for part in parts)
        return base64.urlsafe_b64encode(hmac.digest(self._current(), message, hashlib.sha256)).decode().rstrip("=")

    def is_valid(self, signature: str, *parts: str) -> bool:
        return hmac.compare_digest(signature.encode(errors="surrogatepass"), self.sign(*parts).encode())

    def _current(self) -> bytes:
        if not self._secret:
            self.load()
        elif time.monotonic() > self._until and self._reading.acquire(blocking=False):
            Thread(target=self._reload, name="signing-secret", daemon=True).start()
        return self._secret

    def _reload(self) -> None:
        try:
            self.load()
        except RedisError:  # the next signature tries again
            pass
        finally:
            self._reading.release()
