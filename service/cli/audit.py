"""`ivmix audit`: what administrators did, newest first."""

from __future__ import annotations

from itertools import islice

import typer
from rich.console import Console
from rich.table import Table

from service.audit_log import AuditLog
from service.cli.redis_server import reachable_redis
from service.settings import load_settings


def show(*, limit: int, action: str | None, as_json: bool) -> None:
    with reachable_redis(load_settings()) as redis:
        wanted = (entry for entry in AuditLog(redis).newest_first() if action in (None, entry.action))
        entries = list(islice(wanted, limit))
    if as_json:
        for entry in entries:
            typer.echo(entry.model_dump_json())
        return
    table = Table("at", "actor", "action", "target", "details", box=None, pad_edge=False)
    for entry in entries:
        details = ", ".join(f"{name}={value}" for name, value in entry.details.items())
        table.add_row(entry.at, entry.actor, entry.action, entry.target, details)
    Console(width=200).print(table)
