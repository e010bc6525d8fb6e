"""The audit log: what an administrator did, who, when. A line in the log, and an entry in a stream in Redis that keeps
the newest ones. `ivmix audit` shows it."""

from __future__ import annotations

import getpass
import json
import logging
import os
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import structlog
from redis import Redis
from redis.exceptions import RedisError

from service.errors import ConfigurationError, NotAllowed, NotFound
from service.frozen_model import FrozenModel
from service.log_config import log_context
from service.redis_scripts import UntypedRedis

log = logging.getLogger("ivmix.audit")

AUDIT = "ivm:audit"
KEPT = 10_000  # entries; about 2 MB
READ_AT_ONCE = 500


class AuditEntry(FrozenModel):
    """
    Attributes:
        at: ISO 8601 time in UTC, by Redis' clock.
        actor: id of an API key, or `cli:USER@HOST`, or `process:HOST`.
        action: such as `key.created`.
        target: id of what was changed.
        details: more about it, without secrets and prompts.
    """

    at: str
    actor: str
    action: str
    target: str
    details: dict[str, Any] = {}


class AuditLog:
    def __init__(self, redis: Redis) -> None:
        self._redis: UntypedRedis = redis

    def record(self, action: str, target: str, *, actor: str, **details: Any) -> None:
        """Write an entry about what has been done. Without Redis it is in the log only: the action stays done."""
        if request_id := structlog.contextvars.get_contextvars().get("request_id"):
            details["request_id"] = request_id
        with log_context(actor=actor, action=action, target=target, **{k: str(v) for k, v in details.items()}):
            log.info("audit: %s %s by %s", action, target, actor)
        fields = {"actor": actor, "action": action, "target": target, "details": json.dumps(details)}
        try:
            self._redis.xadd(AUDIT, fields, maxlen=KEPT, approximate=True)
        except RedisError as e:
            log.error("%s %s by %s is missing in the audit log of Redis: %s", action, target, actor, type(e).__name__)

    @contextmanager
    def recording(self, action: str, target: str, *, actor: str, **details: Any) -> Generator[dict[str, Any]]:
        """Record what is done in this context, which may add to the details. An error that leaves open whether it is
        done, or how much of it, becomes the `outcome` of the entry."""
        try:
            yield details
        except (ConfigurationError, NotFound, NotAllowed):  # nothing is done
            raise
        except Exception as e:
            self.record(action, target, actor=actor, **details, outcome=f"error: {type(e).__name__}")
            raise
        self.record(action, target, actor=actor, **details)

    def newest_first(self) -> Iterator[AuditEntry]:
        """Every entry that is kept; damaged ones are left out."""
        before = "+"
        while entries := self._redis.xrevrange(AUDIT, before, "-", count=READ_AT_ONCE):
            for entry, fields in entries:
                if (found := _decode(entry, fields)) is not None:
                    yield found
            before = f"({entries[-1][0].decode()}"


def person() -> str:
    """The actor of a command."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # the user has no entry in passwd
        user = str(os.getuid())
    return f"cli:{user}@{socket.gethostname()}"


def this_process() -> str:
    return f"process:{socket.gethostname()}"


def _decode(entry: bytes, fields: dict[bytes, bytes]) -> AuditEntry | None:
    try:
        at = datetime.fromtimestamp(int(entry.partition(b"-")[0]) / 1000, UTC)
        values: dict[str, Any] = {name.decode(): value.decode() for name, value in fields.items()}
        values["details"] = json.loads(values.get("details", "{}"))
        return AuditEntry(at=at.isoformat(timespec="milliseconds"), **values)
    except (ValueError, TypeError):
        return None
