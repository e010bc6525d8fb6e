"""Tries every command that ivmix and RQ use, on keys of its own that are gone afterwards.

Asking `ACL DRYRUN` would need more permissions than the work itself.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from redis.exceptions import NoPermissionError, ReadOnlyError

from service.redis_scripts import UntypedRedis

MOST_NAMED = 8

Command = tuple[str, ...]

# One a line; words in braces are keys of that type.
COMMANDS = """
PING
WAIT 0 1
SET {text} 1 EX 60
SETEX {text} 60 1
GET {text}
MGET {text} {text}
INCR {text}
EXISTS {text}
TYPE {text}
TIME
EXPIRE {text} 60
PEXPIRE {text} 60000
PERSIST {absent}
TTL {text}
HSET {hash} a 1
HSETNX {hash} a 1
HGET {hash} a
HMGET {hash} a
HGETALL {hash}
HDEL {hash} absent
HEXISTS {hash} a
HINCRBY {hash} a 1
HINCRBYFLOAT {hash} b 1
RPUSH {list} a a a
LPUSH {list} a
LRANGE {list} 0 -1
LINDEX {list} 0
LSET {list} 0 a
LLEN {list}
LPOS {list} a
LINSERT {list} BEFORE a b
LREM {list} 1 b
LTRIM {list} 0 10
LMOVE {list} {list} RIGHT LEFT
BLMOVE {list} {list} 1 RIGHT LEFT
BLPOP {list} 1
LPOP {list}
RPOP {list}
SADD {set} a
SCARD {set}
SISMEMBER {set} a
SMEMBERS {set}
SREM {set} absent
ZADD {sorted} 1 a
ZCARD {sorted}
ZCOUNT {sorted} 0 1
ZRANGE {sorted} 0 -1
ZRANGEBYSCORE {sorted} 0 1
ZSCORE {sorted} a
ZPOPMIN {sorted}
ZREM {sorted} absent
ZREMRANGEBYSCORE {sorted} 0 1
XADD {stream} * a 1
XREAD COUNT 1 BLOCK 1 STREAMS {stream} 0
XLEN {stream}
XRANGE {stream} - + COUNT 1
XREVRANGE {stream} + - COUNT 1
XDEL {stream} 0-1
EVAL return(redis.call('EXISTS',KEYS[1])) 1 {text}
EVALSHA 0000000000000000000000000000000000000000 1 {text}
SCRIPT LOAD return(1)
MULTI
EXISTS {text}
EXEC
WATCH {text}
UNWATCH
TIME
CLIENT SETNAME ivmix-check
EXPIRE {hash} 60
EXPIRE {list} 60
EXPIRE {set} 60
EXPIRE {sorted} 60
EXPIRE {stream} 60
DEL {text} {hash} {list} {set} {sorted} {stream}
UNLINK {text} {hash} {list} {set} {sorted} {stream}
"""


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


def commands_on(key: str) -> list[Command]:
    """Commands without lasting effect. Replies other than a missing permission do not matter, nor do types."""
    keys = {kind: f"{key}:{kind}" for kind in ("text", "hash", "list", "set", "sorted", "stream", "absent")}
    return [tuple(part.format(**keys) for part in line.split()) for line in COMMANDS.strip().splitlines()]


def _summary(commands: Sequence[Command], replies: Iterable[Any]) -> str | None:
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
