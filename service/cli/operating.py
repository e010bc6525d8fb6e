"""Commands for those who run the service: `doctor`, `backup`, `restore`, `audit`, `usage`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

operating = typer.Typer()


@operating.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check settings, machine, storage, models, Redis and workers. Exits with 1 if there is a problem."""
    from service.cli.doctor import run

    raise typer.Exit(run(as_json=as_json))


@operating.command()
def backup(target: Annotated[Path, typer.Argument(metavar="FOLDER|FILE")]) -> None:
    """Save what Redis holds and the storage does not: keys, webhooks, waiting videos, records. May run at any time."""
    from service.cli.backup import back_up

    back_up(target)


@operating.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A file that `ivmix backup` made.")],
    merge: Annotated[bool, typer.Option("--merge", help="Into a Redis that is not empty: keep what it has.")] = False,
) -> None:
    """Write a backup into an empty Redis. Files of videos are in the storage and not in the backup."""
    from service.cli import backup as commands

    commands.restore(file, merge=merge)


@operating.command()
def audit(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Newest entries.")] = 50,
    action: Annotated[str | None, typer.Option(help="Only these: key.created, video.deleted ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Show what administrators did: keys, models, videos of others, settings, backups."""
    from service.cli.audit import show

    show(limit=limit, action=action, as_json=as_json)


@operating.command()
def usage(
    first: Annotated[
        str | None, typer.Option("--from", help="First day, UTC; default: 29 days before the last.")
    ] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last day, UTC; default: today.")] = None,
    key: Annotated[str | None, typer.Option(help="Only this API key, by its id.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Show videos, GPU seconds and bytes by day and API key."""
    from service.cli.usage import show

    show(first=first, last=last, owner=key, as_csv=as_csv)
