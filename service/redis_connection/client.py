"""Creates Redis clients from IVMIX_REDIS_URL. Messages never contain the password."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult, urlsplit

from redis import Redis
from redis.asyncio import ConnectionPool as AsyncPool
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from service.errors import ConfigurationError
from service.redis_connection.sentinel import open_async_pool, open_primary
from service.redis_connection.sentinel_url import is_sentinel, parse_sentinel_url
from service.redis_connection.url_options import VARIABLE

FORM = "redis://USER:PASSWORD@HOST:PORT/DATABASE (rediss:// for TLS)"
HEALTH_CHECK_S = 30
CONNECT_TIMEOUT_S = 2.0
REPLY_TIMEOUT_S = 5.0
# About one second in total; callers decide about longer waits.
RETRIES = 3
BACKOFF = ExponentialWithJitterBackoff(base=0.05, cap=0.5)
SCHEMES = "redis://, rediss://, unix://, redis+sentinel:// or rediss+sentinel://"


def open_redis(
    url: str,
    *,
    reply_timeout_s: float | None = REPLY_TIMEOUT_S,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    retries: int = RETRIES,
) -> Redis:
    """A client of one server, or of the primary that Sentinels name. All clients of ivmix are made in this module.

    Args:
        reply_timeout_s: None for workers: RQ then sets a timeout that fits its blocking pop.

    Raises:
        ConfigurationError: the URL is invalid.
    """
    options = _options(reply_timeout_s, connect_timeout_s) | {"retry": Retry(BACKOFF, retries)}
    with _checked(url):
        if is_sentinel(url):
            client = open_primary(parse_sentinel_url(url), **options)
        else:
            client = Redis.from_url(url, **options)  # pyright: ignore[reportUnknownMemberType]
        client.connection_pool.make_connection()  # checks the options, without connecting
    return client


def open_async_redis(url: str) -> AsyncRedis:
    """A client with a single connection, for the event loop that uses it first. Raises ConfigurationError."""
    options = _options(REPLY_TIMEOUT_S, CONNECT_TIMEOUT_S) | {"retry": AsyncRetry(BACKOFF, RETRIES)}
    with _checked(url):
        if is_sentinel(url):
            pool = open_async_pool(parse_sentinel_url(url), **options)
        else:
            pool = AsyncPool.from_url(url, **options)  # pyright: ignore[reportUnknownMemberType]
        pool.make_connection()
    return AsyncRedis(connection_pool=pool, single_connection_client=True)


def _options(reply_timeout_s: float | None, connect_timeout_s: float) -> dict[str, Any]:
    return {
        "socket_connect_timeout": connect_timeout_s,
        "socket_timeout": reply_timeout_s,
        "health_check_interval": HEALTH_CHECK_S,
    }


@contextmanager
def _checked(url: str) -> Generator[None]:
    """Errors that the URL causes become a ConfigurationError."""
    split_url(url)
    try:
        yield
    except (ValueError, TypeError, RedisError, OSError) as e:
        raise ConfigurationError(f"{VARIABLE}: {_option_problem(e)}; correct what follows the '?'") from e


def split_url(url: str) -> SplitResult:
    """Raises ConfigurationError for what redis-py would take for something else, such as a database without number."""
    if not re.match(r"(redis|rediss|unix|rediss?\+sentinel)://", url):
        raise ConfigurationError(f"{VARIABLE} must begin with {SCHEMES}; its form is {FORM}")
    if is_sentinel(url):
        return _split_sentinel_url(url)
    try:
        parts = urlsplit(url)
        _ = parts.port, parts.hostname
    except ValueError as e:
        raise ConfigurationError(
            f"{VARIABLE} is not of the form {FORM}; write / # ? @ : in a password as %2F %23 %3F %40 %3A"
        ) from e
    if parts.fragment or (parts.scheme != "unix" and not re.fullmatch(r"/?\d*", parts.path)):
        raise ConfigurationError(
            f"{VARIABLE}: what follows the port must be the number of a database; its form is {FORM}, and / # ? @ : in "
            "a password are written %2F %23 %3F %40 %3A"
        )
    return parts


def _split_sentinel_url(url: str) -> SplitResult:
    try:
        return urlsplit(parse_sentinel_url(url).primary)
    except ValueError as e:
        raise ConfigurationError(f"{VARIABLE} {e}") from e


def address_of(url: str) -> str:
    """The server's address without user and password, for messages."""
    parts = split_url(url)
    if is_sentinel(url):
        return str(parse_sentinel_url(url))
    return parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def _option_problem(e: Exception) -> str:
    if unknown := re.search(r"unexpected keyword argument '(\w+)'", str(e)):
        return f"there is no option '{unknown[1]}'"
    return str(e).rstrip(".")
