"""`ivmix backup` and `ivmix restore`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import typer

import service
from service.audit_log import AuditLog, person
from service.cli.redis_server import reachable_redis
from service.errors import ConfigurationError
from service.maintenance.backup import Backup
from service.maintenance.backup_file import BackupWriter
from service.maintenance.restore import Restore
from service.redis_connection.replication import Replication
from service.settings import load_settings


def back_up(target: Path) -> None:
    """Write a backup to a file, or to a new file in a folder."""
    path = target / time.strftime("ivmix-%Y%m%dT%H%M%SZ.jsonl.gz", time.gmtime()) if target.is_dir() else target
    if not path.parent.is_dir():
        raise ConfigurationError(f"there is no folder {path.parent}; make it, or name another one")
    with reachable_redis(load_settings()) as redis:
        backup = Backup(redis)
        with BackupWriter(path, made_by=f"ivmix {service.__version__}") as writer:
            backup.write(writer)
        AuditLog(redis).record("backup.made", path.name, actor=person(), **backup.counts)
    typer.echo(f"{path}: {', '.join(f'{count} {what}' for what, count in backup.counts.items())}")


def restore(path: Path, *, merge: bool) -> None:
    settings = load_settings()
    with reachable_redis(settings) as redis:
        job = Restore(redis)
        with AuditLog(redis).recording("backup.restored", path.name, actor=person(), merge=merge) as details:
            try:
                first = job.run(path, merge=merge)
            finally:
                details.update(job.counts)
            # Otherwise a failover could lose what is reported as restored.
            Replication(settings.redis_wait_replicas, settings.redis_wait_s).require(redis)
    made_at = datetime.fromtimestamp(first["made_at"], UTC).strftime("%Y-%m-%d %H:%M UTC")
    counts = ", ".join(f"{count} {what}" for what, count in sorted(job.counts.items()))
    typer.echo(f"restored the backup of {made_at}, made by {first['made_by']}: {counts or 'nothing'}")
