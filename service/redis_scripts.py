"""Lua scripts that Redis runs atomically. Each is a file `scripts/NAME.lua` of the package that uses it."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import NoScriptError

# redis-py annotates every reply with all types that any protocol version or async client could return. Stores
# therefore hold their client as this type and convert replies where they read them.
UntypedRedis = Any

Script = Callable[[list[str], list[Any]], Any]  # script(KEYS, ARGV) -> reply
AsyncScript = Callable[[list[str], list[Any]], Awaitable[Any]]


def load_script(redis: Redis, package: str, name: str) -> Script:
    """A function that runs a script: with EVALSHA, and with EVAL if the server does not know the script yet.

    redis-py's `register_script` sends SCRIPT LOAD and EVALSHA then, and fails if the server restarts between the two.

    The local functions in `scripts/shared/`, if there are any, are available to every script of the package.

    Args:
        package: package that contains the `scripts` folder.
        name: file name without `.lua`.
    """
    client: UntypedRedis = redis
    source, sha = script_source(package, name)

    def run(keys: list[str], args: list[Any]) -> Any:
        try:
            return client.evalsha(sha, len(keys), *keys, *args)
        except NoScriptError:
            return client.eval(source, len(keys), *keys, *args)

    return run


def load_async_script(redis: AsyncRedis, package: str, name: str) -> AsyncScript:
    """`load_script` for an asynchronous client."""
    client: UntypedRedis = redis
    source, sha = script_source(package, name)

    async def run(keys: list[str], args: list[Any]) -> Any:
        try:
            return await client.evalsha(sha, len(keys), *keys, *args)
        except NoScriptError:
            return await client.eval(source, len(keys), *keys, *args)

    return run


def script_source(package: str, name: str) -> tuple[str, str]:
    """The text of a script, and its SHA-1 for EVALSHA."""
    source = _source(package, name)
    return source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


def flatten_commands(commands: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Encode Redis commands for `run_commands` in shared/common.lua: each one preceded by its number of parts."""
    return [part for command in commands for part in (len(command), *command)]


@cache
def _source(package: str, name: str) -> str:
    folder = files(package) / "scripts"
    shared = folder / "shared"
    parts = sorted(shared.iterdir(), key=lambda part: part.name) if shared.is_dir() else []
    return "\n".join(part.read_text(encoding="utf-8") for part in (*parts, folder / f"{name}.lua"))
