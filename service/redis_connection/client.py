"""Creates Redis clients from IVMIX_REDIS_URL. Messages never contain the password."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from service.errors import ConfigurationError
from service.redis_connection.sentinel import open_primary
from service.redis_connection.sentinel_url import is_sentinel, parse_sentinel_url
from service.redis_connection.url_options import VARIABLE
from service.redis_scripts import UntypedRedis

FORM = "redis://USER:PASSWORD@HOST:PORT/DATABASE (rediss:// for TLS)"
HEALTH_CHECK_S = 30
SCHEMES = "redis://, rediss://, unix://, redis+sentinel:// or rediss+sentinel://"


def open_redis(
    url: str, *, reply_timeout_s: float | None = 5.0, connect_timeout_s: float = 2.0, retries: int = 3
) -> Redis:
    """A client of one server, or of the primary that Sentinels name. All clients of ivmix are made here.

    Args:
        reply_timeout_s: None for workers: RQ then sets a timeout that fits its blocking pop.

    Raises:
        ConfigurationError: the URL is invalid.
    """
    split_url(url)
    # About one second in total; callers decide about longer waits.
    retry = Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), retries)
    try:
        client = _open(url, retry, reply_timeout_s=reply_timeout_s, connect_timeout_s=connect_timeout_s)
        client.connection_pool.make_connection()  # checks the options, without connecting
    except (ValueError, TypeError, RedisError, OSError) as e:
        raise ConfigurationError(f"{VARIABLE}: {_option_problem(e)}; correct what follows the '?'") from e
    return client


def _open(url: str, retry: Retry, *, reply_timeout_s: float | None, connect_timeout_s: float) -> UntypedRedis:
    if is_sentinel(url):
        return open_primary(
            parse_sentinel_url(url),
            reply_timeout_s=reply_timeout_s,
            connect_timeout_s=connect_timeout_s,
            retry=retry,
            health_check_interval=HEALTH_CHECK_S,
        )
    return Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
        url,
        socket_connect_timeout=connect_timeout_s,
        socket_timeout=reply_timeout_s,
        health_check_interval=HEALTH_CHECK_S,
        retry=retry,
    )


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
