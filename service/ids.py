"""Ids that sort by age."""

from __future__ import annotations

import secrets
import time
from threading import Lock

_last_id = 0
_id_lock = Lock()


def new_job_id() -> str:
    return new_id("video")


def new_id(kind: str) -> str:
    """{kind}_ + UUIDv7 in hex (RFC 9562 6.2 method 2): ids sort by age, within this process strictly."""
    global _last_id
    fresh = (time.time_ns() // 1_000_000) << 74 | secrets.randbits(74)  # 48 bits of milliseconds, 74 of chance
    with _id_lock:
        _last_id = max(fresh, _last_id + 1 + secrets.randbits(32))
        millis_and_a, b = divmod(_last_id, 1 << 62)
    millis, a = divmod(millis_and_a, 1 << 12)
    return f"{kind}_{millis << 80 | 0x7 << 76 | a << 64 | 0b10 << 62 | b:032x}"
