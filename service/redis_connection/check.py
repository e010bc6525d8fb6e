"""Checks once that the server behind IVMIX_REDIS_URL can be used, and says why it cannot.

A server that is absent (RedisAway) may appear later. One that refuses us does not get better by waiting
(ConfigurationError): wrong password, missing permissions, certificate, cluster mode, old version, replica.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from redis import exceptions as errors

from service.errors import ConfigurationError
from service.redis_connection.check_sentinels import absent_sentinels
from service.redis_connection.client import address_of, open_redis, split_url
from service.redis_connection.permissions import denied_permissions
from service.redis_connection.refusals import NO_REDIS, OLDEST, TIMEOUT_S, dotted, refusal_reason, short
from service.redis_connection.sentinel_url import is_sentinel, parse_sentinel_url
from service.redis_connection.url_options import VARIABLE

REPLICA = ("slave", "replica")


class RedisAway(Exception):
    """The server cannot be reached at the moment, for the reason in the message."""


def check_redis(url: str) -> None:
    """
    Raises:
        ConfigurationError: the server or the URL must be changed; one sentence that names IVMIX_REDIS_URL.
        RedisAway: no server answers.
    """
    split_url(url)
    uses_sentinels = is_sentinel(url)
    if uses_sentinels and (reason := absent_sentinels(parse_sentinel_url(url))):
        raise RedisAway(f"{VARIABLE}: no Sentinel answers ({reason})")
    redis: Any = open_redis(url, reply_timeout_s=TIMEOUT_S, connect_timeout_s=TIMEOUT_S, retries=0)
    try:
        hello = _as_text(redis.execute_command("HELLO"))
        if uses_sentinels and hello.get("role") in REPLICA:
            raise RedisAway(f"{VARIABLE}: {address_of(url)} is a replica until its Sentinels have ended a failover")
        if problem := _unsuitable(hello) or denied_permissions(redis):
            raise _refusal(url, problem)
    except (errors.RedisError, OSError) as e:
        if problem := refusal_reason(e, url):
            raise _refusal(url, problem) from e
        raise RedisAway(f"{VARIABLE}: no Redis answers at {address_of(url)} ({short(e)})") from e
    except (AttributeError, TypeError, ValueError, LookupError) as e:  # redis-py expected another kind of reply
        raise _refusal(url, NO_REDIS) from e
    finally:
        redis.close()


def _refusal(url: str, problem: str) -> ConfigurationError:
    return ConfigurationError(f"{VARIABLE}: {address_of(url)} {problem}")


def _unsuitable(hello: Mapping[str, Any]) -> str | None:
    numbers = re.findall(r"\d+", str(hello.get("version", "")))[:2]
    version = tuple(int(number) for number in numbers)
    if version and version < OLDEST:
        return f"is version {hello['version']}; ivmix needs Redis {dotted(OLDEST)} or newer, or Valkey"
    if hello.get("mode") == "cluster":
        return "runs in cluster mode, which ivmix does not support; use a server without it"
    if hello.get("mode") == "sentinel":
        return "is a Sentinel, which stores nothing; use redis+sentinel://HOST:PORT/SERVICE/DATABASE"
    if hello.get("role") in REPLICA:
        return "is a read-only replica; use the address of the primary"
    return None


def _as_text(reply: Any) -> dict[str, Any]:
    """HELLO's reply is a map, or with the older protocol a flat list."""
    pairs: Any = reply.items() if hasattr(reply, "items") else zip(reply[::2], reply[1::2], strict=False)
    return {_text(name): _text(value) for name, value in pairs}


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
