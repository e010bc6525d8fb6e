"""Checks of the Redis or Valkey server: that nothing which it acknowledges is lost, and that there is room."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from redis import Redis
from redis import exceptions as errors

from service.doctor.clocks import clock_finding
from service.doctor.finding import Finding, Findings, ok, problem, warning
from service.errors import NotReplicated
from service.redis_connection.replication import Replication
from service.redis_scripts import UntypedRedis

SLOW_PING_S = 0.05
NEARLY_FULL, FULL = 0.8, 0.95
Info = dict[str, Any]


def check_server(redis: UntypedRedis, now: Callable[[], float]) -> Findings:
    """
    Args:
        now: unix time of this machine.
    """
    try:
        info: Info = redis.info()
    except errors.NoPermissionError:
        yield warning(
            "redis",
            "this user may not run INFO, so persistence and memory cannot be checked",
            "grant it with `ACL SETUSER ivmix +info`, or check appendonly, appendfsync and maxmemory-policy",
        )
    else:
        name = "Valkey" if info.get("valkey_version") else "Redis"
        yield ok("redis", f"{name} {info.get('valkey_version') or info['redis_version']} accepts this user")
        yield from _persistence(redis, info)
        yield from _memory(info)
    yield from _writes(redis)
    began = time.perf_counter()
    before, (seconds, micros) = now(), redis.time()
    yield clock_finding("Redis' clock", seconds + micros / 1e6 - (before + now()) / 2)
    elapsed = time.perf_counter() - began
    if elapsed > SLOW_PING_S:
        yield warning("redis", f"one call takes {1000 * elapsed:.0f} ms", "move Redis closer, or look at its load")


def _persistence(redis: UntypedRedis, info: Info) -> Findings:
    if not info.get("aof_enabled"):
        message = "appendonly is off: accepted videos are lost when the server ends"
        yield problem("persistence", message, "set `appendonly yes` and `appendfsync always`")
        return
    if info.get("aof_last_write_status", "ok") != "ok":
        yield problem("persistence", "the server could not write its log of changes", "make room on its disk")
    if info.get("aof_last_bgrewrite_status", "ok") != "ok":
        yield warning("persistence", "the last rewrite of the log of changes failed", "see the server's log")
    fsync = _configured(redis, "appendfsync")
    if fsync is None:
        yield warning("persistence", "appendonly is on; appendfsync cannot be read", "it must be `always`")
    elif fsync != "always":
        message = f"appendfsync is {fsync}: a crash loses the last seconds of accepted videos"
        yield warning("persistence", message, "set `appendfsync always`")
    else:
        yield ok("persistence", "every acknowledged write is on disk")


def _memory(info: Info) -> Findings:
    policy, limit, used = info.get("maxmemory_policy"), int(info.get("maxmemory", 0)), int(info["used_memory"])
    if policy not in (None, "noeviction"):
        message = f"maxmemory-policy is {policy}: a full server deletes videos, keys and webhooks"
        yield problem("memory", message, "set `maxmemory-policy noeviction`")
        return
    share = used / limit if limit else 0.0
    text = f"{used / 1e6:.0f} MB" + (f" of {limit / 1e6:.0f} MB" if limit else ", without a limit")
    if share > FULL:
        yield problem("memory", f"Redis is full: {text}; new videos get 503", "raise `maxmemory`")
    elif share > NEARLY_FULL:
        yield warning("memory", f"Redis is nearly full: {text}", "raise `maxmemory`, or lower IVMIX_RETENTION_SECONDS")
    else:
        yield ok("memory", f"Redis uses {text}")


def _writes(redis: UntypedRedis) -> Findings:
    """A full memory or disk refuses writes, but not what is read above."""
    try:
        redis.set("ivm:check:doctor", "1", ex=60)
    except (errors.OutOfMemoryError, errors.ResponseError) as e:
        yield problem("redis", f"the server refuses writes: {e}", "make room in its memory or on its disk")


def _configured(redis: UntypedRedis, name: str) -> str | None:
    """None where the user may not ask, as on most managed servers."""
    try:
        found = redis.config_get(name).get(name)
    except errors.ResponseError:
        return None
    return found.decode() if isinstance(found, bytes) else found


def check_replicas(redis: Redis, replication: Replication, *, uses_sentinels: bool) -> Findings:
    """A request that creates a video waits for replicas, if it is to."""
    if not replication.replicas:
        if uses_sentinels:
            message = "a failover can lose accepted videos: IVMIX_REDIS_WAIT_REPLICAS is 0"
            yield warning("replicas", message, "set it to 1 in all processes; docs/stores.md")
        return
    try:
        replication.require(redis)
    except NotReplicated as e:
        yield problem("replicas", f"new videos get 503: {e.message}")
    else:
        yield ok("replicas", f"{replication.replicas} or more have a change within {replication.timeout_s:g} s")


def absent(message: str) -> Finding:
    return problem("redis", message, "start it, or correct IVMIX_REDIS_URL")
