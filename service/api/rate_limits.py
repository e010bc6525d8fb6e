"""Request rate limit per owner. The limit on queued videos is enforced by the store when it creates a job."""

from __future__ import annotations

import math
import time

from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis import Redis

from service.api.auth import Principal
from service.errors import RateLimited
from service.jobs.store import QueueLimits


class RateLimiter:
    """Counts in Redis, so that all API processes share one limit."""

    def __init__(self, redis: Redis) -> None:
        storage = RedisStorage("redis://", connection_pool=redis.connection_pool, key_prefix="ivm:rate")
        self._window = SlidingWindowCounterRateLimiter(storage)

    def check(self, principal: Principal) -> None:
        """Counts one request. Raises RateLimited, with the seconds until the next one is allowed."""
        if principal.requests_per_minute is None:
            return
        limit = RateLimitItemPerMinute(principal.requests_per_minute)
        if not self._window.hit(limit, principal.owner):
            wait_s = math.ceil(self._window.get_window_stats(limit, principal.owner).reset_time - time.time())
            message = f"Rate limit exceeded: {principal.requests_per_minute} new videos per minute for this API key."
            raise RateLimited(message, min(60, max(1, wait_s)))


def waiting_limits(principal: Principal, max_waiting: int) -> QueueLimits:
    return QueueLimits(per_queue=max_waiting, per_owner=principal.max_waiting or max_waiting)
