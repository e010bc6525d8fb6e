"""How much one owner may ask for: requests per minute here, waiting videos in the store's own script."""

from __future__ import annotations

import math
import time

from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis import Redis

from service.api.auth import Principal
from service.errors import RateLimited
from service.jobs.store import Limits


class RateLimiter:
    """Counts in Redis, so that all API processes count together."""

    def __init__(self, redis: Redis) -> None:
        storage = RedisStorage("redis://", connection_pool=redis.connection_pool, key_prefix="ivm:rate")
        self._window = SlidingWindowCounterRateLimiter(storage)

    def check(self, principal: Principal) -> None:
        """Count one request. Raises RateLimited with the time until there is room again."""
        if principal.requests_per_minute is None:
            return
        limit = RateLimitItemPerMinute(principal.requests_per_minute)
        if not self._window.hit(limit, principal.owner):
            wait_s = math.ceil(self._window.get_window_stats(limit, principal.owner).reset_time - time.time())
            message = f"This API key may ask for {principal.requests_per_minute} new videos a minute."
            raise RateLimited(message, min(60, max(1, wait_s)))


def waiting_limits(principal: Principal, max_waiting: int) -> Limits:
    return Limits(queue=max_waiting, owner=principal.max_waiting or max_waiting)
