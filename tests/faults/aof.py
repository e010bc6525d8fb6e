"""Reads every state change of every job from Redis' append-only file (AOF), so none can be missed.

Redis logs a script's effects as single commands, so two changes by one script appear as two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

RECORD = b"ivm:job:"


def transitions(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield {"id", "state", "execution"} for every write of a state, in order.

    `state` is None where the record was deleted. `execution` is the execution id in the record after the write.
    """
    executions: dict[bytes, str | None] = {}
    for command in _commands(folder):
        name, *rest = command
        match name.upper():
            case b"HSET" | b"HMSET" if rest[0].startswith(RECORD):
                fields = dict(zip(rest[1::2], rest[2::2], strict=True))
                if b"execution_id" in fields:
                    executions[rest[0]] = _value(fields[b"execution_id"])
                if b"state" in fields:
                    yield _line(rest[0], _value(fields[b"state"]), executions.get(rest[0]))
            case b"DEL" | b"UNLINK":
                for key in (key for key in rest if key.startswith(RECORD)):
                    yield _line(key, None, executions.get(key))
            case _:
                pass


def _line(key: bytes, state: Any, execution: Any) -> dict[str, Any]:
    return {"id": key.removeprefix(RECORD).decode(), "state": state, "execution": execution}


def _value(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.decode(errors="replace")


def _commands(folder: Path) -> Iterator[list[bytes]]:
    files = sorted(folder.glob("*.incr.aof"), key=lambda path: int(path.name.split(".")[-3]))
    assert files, f"{folder} contains no append-only file"
    for path in files:
        with path.open("rb") as file:
            while command := _read(file):
                yield command


def _read(file: BinaryIO) -> list[bytes] | None:
    """One command in RESP: *count, then for each part $length and its bytes. None at the end or if it is truncated."""
    head = file.readline()
    while head.startswith(b"#"):  # an annotation such as a timestamp
        head = file.readline()
    if not head.endswith(b"\r\n"):
        return None
    parts: list[bytes] = []
    for _ in range(int(head[1:])):
        length = int(file.readline()[1:])
        parts.append(file.read(length))
        file.read(2)
    return parts
