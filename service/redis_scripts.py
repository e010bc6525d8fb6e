"""Lua scripts that Redis runs atomically. Each is a file `scripts/NAME.lua` of the package that uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from redis import Redis

# redis-py annotates every reply with all types that any protocol version or async client could return. Stores
# therefore hold their client as this type and convert replies where they read them.
UntypedRedis = Any

Script = Callable[[list[str], list[Any]], Any]  # script(KEYS, ARGV) -> reply


def load_script(redis: Redis, package: str, name: str) -> Script:
    """Register a script with a client; EVALSHA is used from then on, and EVAL again after a server restart.

    The local functions in `scripts/shared/`, if there are any, are available to every script of the package.

    Args:
        package: package that contains the `scripts` folder.
        name: file name without `.lua`.
    """
    client: UntypedRedis = redis
    return client.register_script(_source(package, name))


def flatten_commands(commands: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Encode Redis commands for `run_commands` in shared/common.lua: each one preceded by its number of parts."""
    return [part for command in commands for part in (len(command), *command)]


@cache
def _source(package: str, name: str) -> str:
    folder = files(package) / "scripts"
    shared = folder / "shared"
    parts = sorted(shared.iterdir(), key=lambda part: part.name) if shared.is_dir() else []
    return "\n".join(part.read_text(encoding="utf-8") for part in (*parts, folder / f"{name}.lua"))
