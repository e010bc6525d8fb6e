"""Tries every command that ivmix and RQ use, on keys of its own that are gone afterwards.

Asking `ACL DRYRUN` would need more permissions than the work itself.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from typing import Any

from redis.exceptions import NoPermissionError, ReadOnlyError

from service.redis_scripts import UntypedRedis

LIFETIME_S = 60
MOST_NAMED = 8

Command = tuple[Any, ...]


def denied_permissions(redis: UntypedRedis) -> str | None:
    """What the user of this connection may not do; None if it may do everything that is needed."""
    name = f"check:{secrets.token_hex(8)}"
    commands = [command for prefix in ("ivm", "rq") for command in commands_on(f"{prefix}:{name}")]
    with redis.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.pipeline_execute_command(*command)  # `execute_command` would run WATCH at once
        replies = pipe.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, ReadOnlyError):
            raise reply
    return _summary(commands, replies)


def commands_on(key: str) -> Iterable[Command]:
    """Commands without lasting effect. Replies other than a missing permission do not matter, nor do types."""
    kinds = {kind: f"{key}:{kind}" for kind in ("text", "hash", "list", "set", "sorted", "stream")}
    text, fields, items, members, scores, stream = kinds.values()
    yield from (
        ("PING",),
        ("SET", text, "1", "EX", LIFETIME_S),
        ("SETEX", text, LIFETIME_S, "1"),
        ("GET", text),
        ("MGET", text, text),
        ("INCR", text),
        ("EXISTS", text),
        ("EXPIRE", text, LIFETIME_S),
        ("PEXPIRE", text, 1000 * LIFETIME_S),
        ("PERSIST", f"{key}:absent"),
        ("TTL", text),
        ("HSET", fields, "a", "1"),
        ("HSETNX", fields, "a", "1"),
        ("HGET", fields, "a"),
        ("HMGET", fields, "a"),
        ("HGETALL", fields),
        ("HEXISTS", fields, "a"),
        ("HINCRBY", fields, "a", 1),
        ("HINCRBYFLOAT", fields, "b", 1),
        ("RPUSH", items, "a", "a", "a"),
        ("LPUSH", items, "a"),
        ("LRANGE", items, 0, -1),
        ("LINDEX", items, 0),
        ("LLEN", items),
        ("LPOS", items, "a"),
        ("LINSERT", items, "BEFORE", "a", "b"),
        ("LREM", items, 1, "b"),
        ("LTRIM", items, 0, 10),
        ("LMOVE", items, items, "RIGHT", "LEFT"),
        ("BLMOVE", items, items, 1, "RIGHT", "LEFT"),
        ("BLPOP", items, 1),
        ("LPOP", items),
        ("RPOP", items),
        ("SADD", members, "a"),
        ("SCARD", members),
        ("SISMEMBER", members, "a"),
        ("SMEMBERS", members),
        ("SREM", members, "absent"),
        ("ZADD", scores, 1, "a"),
        ("ZCARD", scores),
        ("ZCOUNT", scores, 0, 1),
        ("ZRANGE", scores, 0, -1),
        ("ZRANGEBYSCORE", scores, 0, 1),
        ("ZSCORE", scores, "a"),
        ("ZPOPMIN", scores),
        ("ZREM", scores, "absent"),
        ("ZREMRANGEBYSCORE", scores, 0, 1),
        ("XADD", stream, "*", "a", "1"),
        ("XLEN", stream),
        ("XRANGE", stream, "-", "+", "COUNT", 1),
        ("XREVRANGE", stream, "+", "-", "COUNT", 1),
        ("XDEL", stream, "0-1"),
        ("EVAL", "return redis.call('EXISTS', KEYS[1])", 1, text),
        ("EVALSHA", "0" * 40, 1, text),
        ("SCRIPT", "LOAD", "return 1"),
        ("MULTI",),
        ("EXISTS", text),
        ("EXEC",),
        ("WATCH", text),
        ("UNWATCH",),
        ("CLIENT", "SETNAME", "ivmix-check"),
        ("DEL", *kinds.values()),
        ("UNLINK", *kinds.values()),
    )


def _summary(commands: Iterable[Command], replies: Iterable[Any]) -> str | None:
    """Redis says either that the command is denied, or a key."""
    denied = [(command, str(reply)) for command, reply in zip(commands, replies, strict=True) if _is_denied(reply)]
    if not denied:
        return None
    by_key = sorted({_pattern(command) for command, text in denied if re.search(r"\bkeys?\b", text)})
    by_command = sorted({str(command[0]) for command, text in denied if not re.search(r"\bkeys?\b", text)})
    parts = [f"the keys {' '.join(by_key)}"] if by_key else []
    parts += [f"the commands {_list(by_command)}"] if by_command else []
    return f"denies this user {' and '.join(parts)}; grant them as docs/operations.md shows"


def _list(commands: list[str]) -> str:
    more = len(commands) - MOST_NAMED
    return " ".join(commands[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _is_denied(reply: Any) -> bool:
    return isinstance(reply, NoPermissionError)


def _pattern(command: Command) -> str:
    key = next(str(part) for part in command if re.match(r"(ivm|rq):", str(part)))
    return f"~{key.split(':')[0]}:*"
