"""Request rate limits. The limit on queued videos is enforced by the store when it creates a job."""

from __future__ import annotations

import hashlib
import math
import time

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis import Redis

from service.api.auth import Principal
from service.errors import RateLimited
from service.jobs.store import QueueLimits
from service.webhooks.url_policy import host_of

OWNERS_PER_HOST = 4  # so many owners can use their whole limit on webhooks to one host


class RateLimiter:
    """Counts in Redis, so that all API processes share one limit."""

    def __init__(self, redis: Redis, *, webhooks_per_minute: int) -> None:
        self._webhooks_per_minute = webhooks_per_minute
        storage = RedisStorage("redis://", connection_pool=redis.connection_pool, key_prefix="ivm:rate")
        self._window = SlidingWindowCounterRateLimiter(storage)

    def check(self, principal: Principal, videos: int = 1) -> None:
        """Counts new videos. Raises RateLimited, with the seconds until the next one is allowed."""
        if principal.requests_per_minute is None or not videos:
            return
        message = f"Rate limit exceeded: {principal.requests_per_minute} new videos per minute for this API key."
        limit = RateLimitItemPerMinute(principal.requests_per_minute)
        self._hit(limit, principal.owner, message=message, cost=videos)

    def check_webhook(self, owner: str, url: str | None) -> None:
        """Counts one webhook that is sent on request. Without this limit, the server would be a cannon at others.

        Raises:
            RateLimited: for the owner, or for the host of the URL, with the seconds until the next one is allowed.
        """
        per_minute, what = self._webhooks_per_minute, "test events and redeliveries per minute"
        message = f"Rate limit exceeded: {per_minute} {what} for this API key (IVMIX_WEBHOOK_SENDS_PER_MINUTE)."
        self._hit(RateLimitItemPerMinute(per_minute), "webhooks", owner, message=message)
        if url is not None:
            host = host_of(url)
            message = f"Rate limit exceeded: {OWNERS_PER_HOST * per_minute} {what} to {host[:100]}."
            digest = hashlib.sha256(host.encode()).hexdigest()
            self._hit(RateLimitItemPerMinute(OWNERS_PER_HOST * per_minute), "webhook_host", digest, message=message)

    def _hit(self, limit: RateLimitItem, *identifiers: str, message: str, cost: int = 1) -> None:
        if not self._window.hit(limit, *identifiers, cost=cost):
            wait_s = math.ceil(self._window.get_window_stats(limit, *identifiers).reset_time - time.time())
            raise RateLimited(message, min(60, max(1, wait_s)))


def waiting_limits(principal: Principal, max_waiting: int) -> QueueLimits:
    return QueueLimits(
        per_queue=max_waiting,
        per_owner=principal.max_waiting or max_waiting,
        gpu_seconds_per_day=principal.gpu_seconds_per_day,
    )
