"""`ivmix keys`: create, list and revoke API keys."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from service.errors import ConfigurationError, ServiceUnavailable
from service.scopes import DEFAULT_SCOPES, Scope

if TYPE_CHECKING:
    from service.api_keys import KeyStore

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
) -> None:
    """Create a key and print it. It cannot be shown again."""
    with _key_store() as store:
        made, secret = store.create(
            name, scopes=_scopes(scopes), owner=owner, requests_per_minute=rpm, max_waiting=max_waiting
        )
        typer.echo(f"{made.id} {made.name}: {', '.join(sorted(made.scopes))}", err=True)
        typer.echo(secret)


@keys.command("list")
def list_keys() -> None:
    """List all keys, without their secrets."""
    from rich.console import Console
    from rich.table import Table

    with _key_store() as store:
        table = Table("id", "name", "scopes", "owner", "created", "last used", "revoked", box=None)
        for key, used in store.list():
            times = (key.created_at, used, key.revoked_at)
            table.add_row(key.id, key.name, ",".join(sorted(key.scopes)), key.owner, *map(_day, times))
        Console(width=200).print(table)


@keys.command("revoke")
def revoke_key(key_id: str) -> None:
    """Revoke a key. Running servers reject it within seconds."""
    with _key_store() as store:
        if store.revoke(key_id) is None:
            raise ConfigurationError(f"there is no key '{key_id}'; `ivmix keys list` shows them")
        typer.echo(f"{key_id} is revoked")


@contextmanager
def _key_store() -> Generator[KeyStore]:
    """Keys in IVMIX_REDIS_URL, else in the embedded server: that of a running `ivmix up`, or started temporarily."""
    from redis.exceptions import RedisError

    from service.api_keys import KeyStore
    from service.process.data_folder import keep_private, prepare_folder
    from service.process.embedded_valkey import reach_or_start
    from service.redis_connection.client import open_redis
    from service.redis_connection.replication import Replication
    from service.redis_connection.wait import require_redis
    from service.settings import load_settings

    settings = load_settings()
    with ExitStack() as stack:
        if settings.redis_address:
            require_redis(settings.redis_address)
        else:
            prepare_folder(settings.data_dir, "IVMIX_DATA_DIR")
            keep_private(settings.data_dir)
        url = settings.redis_address or reach_or_start(settings.data_dir, stack)
        redis = open_redis(url)
        stack.callback(redis.close)
        try:
            yield KeyStore(redis, Replication(settings.redis_wait_replicas, settings.redis_wait_s))
        except RedisError as e:
            raise ServiceUnavailable(f"Redis is unreachable: {e}") from e


def _scopes(text: str) -> list[Scope]:
    try:
        return [Scope(name.strip()) for name in text.split(",")]
    except ValueError as e:
        raise ConfigurationError(f"{e}; choose from {', '.join(Scope)}") from e


def _day(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
