"""The Redis server that commands of an operator use."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from service.errors import ServiceUnavailable

if TYPE_CHECKING:
    from redis import Redis

    from service.settings import Settings


@contextmanager
def reachable_redis(settings: Settings) -> Generator[Redis]:
    """That in IVMIX_REDIS_URL, else the embedded one: that of a running `ivmix up`, or started temporarily.

    Raises:
        ConfigurationError: it refuses us.
        ServiceUnavailable: it cannot be reached, or no longer.
    """
    from redis.exceptions import RedisError

    from service.process.data_folder import keep_private, prepare_folder
    from service.process.embedded_valkey import reach_or_start
    from service.redis_connection.client import open_redis
    from service.redis_connection.wait import require_redis

    with ExitStack() as stack:
        if settings.redis_address:
            require_redis(settings.redis_address)
        else:
            prepare_folder(settings.data_dir, "IVMIX_DATA_DIR")
            keep_private(settings.data_dir)
        url = settings.redis_address or reach_or_start(settings.data_dir, stack)
        redis = open_redis(url)
        stack.callback(redis.close)
        try:
            yield redis
        except RedisError as e:
            raise ServiceUnavailable(f"Redis is unreachable: {e}") from e
