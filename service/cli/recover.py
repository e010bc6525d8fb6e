"""`ivmix recover`: rebuild the records of stored videos after a loss of Redis."""

from __future__ import annotations

from contextlib import ExitStack, closing, nullcontext
from typing import Any

import typer

from service.audit_log import AuditLog, person
from service.cli.up import prepare_data
from service.maintenance.recovery import Recovery, RecoveryStatus
from service.process.embedded_valkey import EmbeddedValkey
from service.redis_connection.wait import require_redis
from service.settings import load_settings
from service.wiring import open_services


def run(*, is_dry: bool, may_delete: bool) -> None:
    with ExitStack() as stack:
        settings = load_settings()
        prepare_data(settings)
        if settings.redis_address is None:  # of `ivmix up`, which must not be running
            url = stack.enter_context(EmbeddedValkey(settings.data_dir, is_temporary=True))
            settings = settings.model_copy(update={"redis_url": url})
        else:
            require_redis(settings.redis_address)
        services = stack.enter_context(closing(open_services(settings)))
        services.storage.check()
        recovery = Recovery(services.store, services.storage, settings.retention_seconds, is_dry)
        counts = dict.fromkeys(RecoveryStatus, 0)
        recording = services.audit.recording("records.recovered", "storage", actor=person(), rebuilt=0)
        nothing = nullcontext(dict[str, Any]())
        with nothing if is_dry else recording as details:
            for job_id, status in recovery.run():
                counts[status] += 1
                details["rebuilt"] = counts[RecoveryStatus.REBUILT]
                typer.echo(f"{status} {job_id}")
            if not is_dry:  # a failover could lose what is reported as rebuilt
                services.replication.require(services.redis)
        summary = ", ".join(f"{count} {status}" for status, count in counts.items())
        typer.echo(f"{sum(counts.values())} videos in the storage: {summary}{' (dry run)' if is_dry else ''}")
        _lost_files(recovery, services.audit, may_delete=may_delete and not is_dry)


def _lost_files(recovery: Recovery, audit: AuditLog, *, may_delete: bool) -> None:
    """Pictures and clips of clients are among them, which nothing else would ever delete."""
    lost = list(recovery.lost_files())
    if lost and may_delete:
        with audit.recording("files.deleted", "storage", actor=person(), deleted=0) as details:
            for key in lost:
                recovery.storage.delete(key)
                details["deleted"] += 1
                typer.echo(f"deleted {key}")
    elif lost:
        typer.echo("\n".join(f"lost {key}" for key in lost))
        typer.echo(f"{len(lost)} files of jobs that are lost; `ivmix recover --delete-lost` deletes them")
