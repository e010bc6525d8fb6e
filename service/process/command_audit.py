"""The audit log for commands that need no Redis otherwise."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Any

from service.audit_log import AuditLog, person
from service.errors import ServiceError
from service.process.embedded_valkey import running_server_url
from service.redis_connection.check import RedisAway, check_redis
from service.redis_connection.client import open_redis
from service.settings import Settings


def record_from_command(settings: Settings, action: str, target: str, **details: Any) -> None:
    """Write an entry if there is a Redis, that of a running `ivmix up` included; otherwise say that there is none."""
    url = settings.redis_address or running_server_url(settings.data_dir)
    try:
        if url is None:
            raise RedisAway("no Redis is configured, and no `ivmix up` runs")
        check_redis(url)
        with closing(open_redis(url)) as redis:
            AuditLog(redis).record(action, target, actor=person(), **details)
    except (RedisAway, ServiceError) as e:
        sys.stderr.write(f"not in the audit log: {e}\n")
