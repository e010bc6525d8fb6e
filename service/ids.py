"""Ids that sort by creation time: a kind and a UUIDv7 (RFC 9562), in hex."""

from __future__ import annotations

import re

from uuid_utils import uuid7

ID_PATTERN = "(0[0-9a-f]{11})7[0-9a-f]{3}[89ab][0-9a-f]{15}"  # the first 0: before the year 2527
_ID = re.compile(f"[a-z]+_{ID_PATTERN}")


def new_job_id() -> str:
    return new_id("video")


def new_id(kind: str) -> str:
    """Return `{kind}_{32 hex digits}`. Ids of one process are strictly increasing, also across threads."""
    return f"{kind}_{uuid7().hex}"


def created_at(an_id: str) -> float:
    """Return the creation time in an id, in unix seconds with milliseconds; 0 if it is no id of `new_id`."""
    match = _ID.fullmatch(an_id)
    return int(match[1], 16) / 1000 if match else 0.0
