"""`ivmix keys`: create, list and revoke API keys."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from service.errors import ConfigurationError
from service.scopes import DEFAULT_SCOPES, Scope

if TYPE_CHECKING:
    from service.api_keys import ApiKey, KeyStore
    from service.audit_log import AuditLog

keys = typer.Typer(help="Manage API keys.", no_args_is_help=True)


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="Label for this key.")],
    scopes: Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(Scope)}.")] = ",".join(
        sorted(DEFAULT_SCOPES)
    ),
    owner: Annotated[str | None, typer.Option(help="Id of an existing key to replace: both share its videos.")] = None,
    rpm: Annotated[
        int | None, typer.Option(min=1, help="Limit of new videos per minute [IVMIX_REQUESTS_PER_MINUTE].")
    ] = None,
    max_waiting: Annotated[
        int | None, typer.Option(min=1, help="Limit of queued videos [IVMIX_MAX_WAITING_PER_KEY].")
    ] = None,
    gpu_seconds: Annotated[
        int | None, typer.Option(min=1, help="Limit of GPU seconds per UTC day [IVMIX_GPU_SECONDS_PER_DAY].")
    ] = None,
) -> None:
    """Create a key and print it. It cannot be shown again."""
    from service.audit_log import person

    with _key_store() as (store, audit):
        made, secret = store.create(
            name,
            scopes=_scopes(scopes),
            owner=owner,
            requests_per_minute=rpm,
            max_waiting=max_waiting,
            gpu_seconds_per_day=gpu_seconds,
        )
        about = made.model_dump(mode="json", exclude={"id", "created_at"}, exclude_none=True)
        audit.record("key.created", made.id, actor=person(), **about | {"scopes": sorted(made.scopes)})
        typer.echo(f"{made.id} {made.name}: {', '.join(sorted(made.scopes))}", err=True)
        typer.echo(secret)


@keys.command("list")
def list_keys() -> None:
    """List all keys, without their secrets."""
    from rich.console import Console
    from rich.table import Table

    with _key_store() as (store, _):
        table = Table("id", "name", "scopes", "owner", "limits", "created", "last used", "revoked", box=None)
        for key, used in store.list():
            times = (key.created_at, used, key.revoked_at)
            table.add_row(key.id, key.name, ",".join(sorted(key.scopes)), key.owner, _limits(key), *map(_day, times))
        Console(width=200).print(table)


def _limits(key: ApiKey) -> str:
    """The limits that were set for this key."""
    own = {"/min": key.requests_per_minute, " queued": key.max_waiting, " GPU s/day": key.gpu_seconds_per_day}
    return ", ".join(f"{limit}{unit}" for unit, limit in own.items() if limit is not None) or "-"


@keys.command("revoke")
def revoke_key(key_id: str) -> None:
    """Revoke a key. Running servers reject it within seconds."""
    from service.audit_log import person

    with _key_store() as (store, audit):
        with audit.recording("key.revoked", key_id, actor=person()):
            if store.revoke(key_id) is None:
                raise ConfigurationError(f"there is no key '{key_id}'; `ivmix keys list` shows them")
        typer.echo(f"{key_id} is revoked")


@contextmanager
def _key_store() -> Generator[tuple[KeyStore, AuditLog]]:
    from service.api_keys import KeyStore
    from service.audit_log import AuditLog
    from service.cli.redis_server import reachable_redis
    from service.redis_connection.replication import Replication
    from service.settings import load_settings

    settings = load_settings()
    with reachable_redis(settings) as redis:
        yield KeyStore(redis, Replication(settings.redis_wait_replicas, settings.redis_wait_s)), AuditLog(redis)


def _scopes(text: str) -> list[Scope]:
    try:
        return [Scope(name.strip()) for name in text.split(",")]
    except ValueError as e:
        raise ConfigurationError(f"{e}; choose from {', '.join(Scope)}") from e


def _day(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
