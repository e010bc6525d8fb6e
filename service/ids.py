"""Ids that sort by creation time: a kind and a UUIDv7 (RFC 9562), in hex."""

from __future__ import annotations

from uuid_utils import uuid7


def new_job_id() -> str:
    return new_id("video")


def new_id(kind: str) -> str:
    """Return `{kind}_{32 hex digits}`. Ids of one process are strictly increasing, also across threads."""
    return f"{kind}_{uuid7().hex}"
