"""Connects to the primary that Redis Sentinels name. After a failover, connections go to the promoted replica."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from redis import Redis
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.connection import parse_url  # pyright: ignore[reportUnknownVariableType]  # redis-py is partly typed
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from service.redis_connection.sentinel_url import SentinelUrl
from service.redis_scripts import UntypedRedis


class Sentinels(Sentinel):
    """redis-py moves the Sentinel that answers to the front of its list, where threads that do it at the same time can
    lose one. This class only remembers which one it was."""

    _answered = 0

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Address of the primary. Raises MasterNotFoundError, a ConnectionError."""
        problems: list[str] = []
        for turn in range(len(self.sentinels)):
            at = (self._answered + turn) % len(self.sentinels)
            client: UntypedRedis = self.sentinels[at]
            try:
                state = client.sentinel_masters().get(service_name)
            except RedisError as e:
                problems.append(type(e).__name__)
                continue
            if state and self._is_up(state, service_name):
                self._answered = at
                return state["ip"], state["port"]
            problems.append("the primary is down" if state else "the service is unknown")
        raise MasterNotFoundError(f"the Sentinels name no primary '{service_name}': {', '.join(problems)}")

    def _is_up(self, state: Any, service_name: str) -> bool:
        return self.check_master_state(state, service_name)  # pyright: ignore[reportUnknownMemberType]


class Primary(Redis):
    """Closes its connections to the Sentinels too, which redis-py leaves open."""

    def close(self) -> None:
        super().close()
        pool: Any = self.connection_pool
        for client in pool.sentinel_manager.sentinels:
            client.close()


def open_sentinels(url: SentinelUrl, *, timeout_s: float) -> list[Redis]:
    """A client of each Sentinel."""
    return _sentinels(url, _primary_options(url), timeout_s).sentinels


def open_primary(url: SentinelUrl, **options: Any) -> Redis:
    """A client of the primary. Raises ValueError, TypeError or RedisError for wrong options of the URL."""
    sentinels, settings = _primary(url, options)
    return sentinels.master_for(url.service, redis_class=Primary, **settings)  # pyright: ignore[reportUnknownMemberType]


class _FromEventLoop:
    """Asks the Sentinels in a thread."""

    def __init__(self, sentinels: Sentinels) -> None:
        self._sentinels = sentinels

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        return await asyncio.to_thread(self._sentinels.discover_master, service_name)


def open_async_pool(url: SentinelUrl, **options: Any) -> SentinelConnectionPool:
    """Asynchronous connections to the primary; options and errors as of `open_primary`."""
    sentinels, settings = _primary(url, options)
    return SentinelConnectionPool(url.service, _FromEventLoop(sentinels), **settings)


def _primary(url: SentinelUrl, options: dict[str, Any]) -> tuple[Sentinels, dict[str, Any]]:
    """The Sentinels, and the options of connections to the primary; those of the URL win."""
    connection = _primary_options(url)
    sentinels = _sentinels(url, connection, options["socket_connect_timeout"])
    return sentinels, {"ssl": url.is_tls, **options, **connection}


def _primary_options(url: SentinelUrl) -> dict[str, Any]:
    parsed: dict[str, Any] = cast(Any, parse_url)(url.primary)
    return {name: value for name, value in parsed.items() if name not in ("host", "port", "connection_class")}


def _sentinels(url: SentinelUrl, primary: dict[str, Any], timeout_s: float) -> Sentinels:
    tls = {name: value for name, value in primary.items() if name.startswith("ssl_")}
    settings: dict[str, Any] = {
        "ssl": url.is_tls,
        "socket_connect_timeout": timeout_s,
        "socket_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),  # another Sentinel is asked instead
        **tls,
        **url.credentials,
    }
    return Sentinels(list(url.nodes), sentinel_kwargs=settings)
