"""All checks in order. What cannot be checked because something else is wrong is left out."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from service.catalog.registry import ModelRegistry
from service.doctor.configuration import check_open_files, check_ports, check_settings
from service.doctor.finding import Findings, ok, problem
from service.doctor.folders import check_folders
from service.doctor.machine import CONSTRAINTS, check_machine
from service.doctor.models import check_models
from service.doctor.processes import check_keys, check_maintenance, check_webhooks, check_workers
from service.doctor.server import absent, check_replicas, check_server
from service.doctor.storage import check_storage
from service.errors import ServiceError
from service.process.embedded_valkey import find_valkey_binary, reach_or_start, running_server_url
from service.redis_connection.check import RedisAway, check_redis
from service.redis_connection.sentinel_url import is_sentinel
from service.settings import Settings, load_settings
from service.wiring import Services, open_services, open_storage


def examine(*, now: Callable[[], float] = time.time, constraints: Path = CONSTRAINTS) -> Findings:
    """
    Args:
        now: unix time of this machine.
        constraints: file with the tested version of every library.
    """
    yield from _guarded("machine", partial(check_machine, constraints))
    try:
        settings = load_settings()
    except ServiceError as e:
        yield problem("settings", e.message, "docs/settings.md lists all; the other checks need valid settings")
        return
    yield from examine_settings(settings, now=now)


def examine_settings(settings: Settings, *, now: Callable[[], float] = time.time) -> Findings:
    """What these settings name: folders, ports, models, storage, Redis and what is in it."""
    yield from _guarded("settings", partial(check_settings, settings))
    yield from _guarded("folders", partial(check_folders, settings))
    yield from _guarded("ports", partial(check_ports, settings))
    yield from _guarded("open files", partial(check_open_files, settings))
    yield from _guarded("models", lambda: check_models(ModelRegistry.of(settings)))
    yield from _guarded("storage", lambda: check_storage(open_storage(settings), settings, now()))
    yield from _guarded("redis", lambda: _redis(settings, now))


def _redis(settings: Settings, now: Callable[[], float]) -> Findings:
    with ExitStack() as stack:
        url = settings.redis_address
        if url is None:
            binary = find_valkey_binary()
            if running_server_url(settings.data_dir) is None and not (settings.data_dir / "valkey").is_dir():
                yield ok("redis", f"`ivmix up` will start {binary}; nothing is stored yet")
                return
            url = reach_or_start(settings.data_dir, stack)
        embedded = {"redis_url": url} if settings.redis_url is None else {}
        changes = {"otlp_endpoint": None, **embedded}  # traces have a check
        try:
            check_redis(url)
        except RedisAway as e:
            yield absent(str(e))
            return
        services = stack.enter_context(closing(open_services(settings.model_copy(update=changes))))
        yield from _guarded("redis", lambda: check_server(services.redis, now))
        yield from _stored(services)


def _stored(services: Services) -> Findings:
    redis, settings = services.redis, services.settings
    uses_sentinels = is_sentinel(services.redis_url)
    replicas = partial(check_replicas, redis, services.replication, uses_sentinels=uses_sentinels)
    yield from _guarded("replicas", replicas)
    yield from _guarded("API keys", lambda: check_keys(services.keys, settings))
    yield from _guarded("webhooks", lambda: check_webhooks(redis, services.webhooks.outbox, time.time()))
    yield from _guarded("maintenance", lambda: check_maintenance(redis))
    models = services.models.ids()
    yield from _guarded("workers", lambda: check_workers(redis, services.store, models, settings))


def _guarded(check: str, findings: Callable[[], Findings]) -> Findings:
    """A check that fails is a finding: the others go on."""
    try:
        yield from findings()
    except ServiceError as e:
        yield problem(check, e.message)
    except Exception as e:  # whatever is broken on a machine must not end the command that is to find it
        yield problem(check, f"the check itself failed: {type(e).__name__}: {e}", "please report this")
