"""Writes changes of the settings into the audit log, when an API process starts with others than the one before."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr
from redis import Redis

from service.audit_log import AuditLog, this_process
from service.environment import PREFIX
from service.redis_scripts import UntypedRedis
from service.settings import Settings
from service.signatures import Signer

KNOWN = "ivm:audit:settings"  # hash: variable -> value of the API process that started last
SECRET = frozenset({"redis_url", "s3_secret_access_key", "s3_access_key_id"})
OF_ONE_PROCESS = frozenset({"port", "pulse_file", "embedded_queue"})


def note_settings(redis: Redis, settings: Settings, signer: Signer) -> None:
    """Secrets appear as a few letters of a signature, which shows only that they have changed. Raises RedisError."""
    untyped: UntypedRedis = redis
    before = {name.decode(): value.decode() for name, value in untyped.hgetall(KNOWN).items()}
    left_out = OF_ONE_PROCESS | {"redis_url"} if settings.embedded_queue else OF_ONE_PROCESS  # new at every start
    current = {PREFIX + name.upper(): _shown(name, value, signer) for name, value in settings if name not in left_out}
    changes = {name: [before.get(name), value] for name, value in current.items() if before.get(name) != value}
    if not changes:
        return
    untyped.hset(KNOWN, mapping=current)
    if before:
        AuditLog(redis).record("settings.changed", "api", actor=this_process(), changes=changes)


def _shown(name: str, value: Any, signer: Signer) -> str:
    if value is None:
        return ""
    plain = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    is_secret = name in SECRET or isinstance(value, SecretStr)
    return f"(secret {signer.sign('setting', name, plain)[:8]})" if is_secret else plain
