"""What an API key may do. Separate from the keys' records, so that `ivmix --help` need not load pydantic and Redis."""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    READ = "videos.read"
    READ_ALL = "videos.read_all"  # the videos of all keys, read only: for dashboards
    WRITE = "videos.write"
    WEBHOOKS = "webhooks"
    ADMIN = "admin"  # access to the videos of all keys


DEFAULT_SCOPES = frozenset({Scope.READ, Scope.WRITE, Scope.WEBHOOKS})
