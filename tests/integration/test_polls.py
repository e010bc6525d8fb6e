"""Polls that arrive together share a read of Redis; an error, or a client that leaves, does not concern the others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import NoPermissionError

from service.api.polls import BATCH_SIZE, Polled, PollReader
from service.jobs.model import Job
from service.jobs.rq_queues import generate_queue
from service.settings import Settings
from service.wiring import Services, open_services
from tests.factories import finish, make_job
from tests.polling import poll_reader
from tests.valkey import Valkey


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def services(server: Valkey, tmp_path: Path) -> Iterator[Services]:
    with closing(open_services(Settings(redis_url=server.url, data_dir=tmp_path, auth="off"))) as opened:
        opened.redis.flushdb()
        yield opened


def queued(services: Services, count: int = 1) -> list[Job]:
    return [services.store.create(make_job(), generate_queue(services.redis, "demo")) for _ in range(count)]


def with_reader(services: Services, use: Callable[[PollReader], Awaitable[Any]]) -> Any:
    """What `use` returns, with a reader that is connected and whose script the server knows."""

    async def run() -> Any:
        async with poll_reader(services) as reader:
            await reader.read("video_x")
            return await use(reader)

    return asyncio.run(run())


def scripts_run(services: Services) -> int:
    redis: Any = services.redis
    return redis.info("commandstats")["cmdstat_evalsha"]["calls"]


def ids_of(polled: list[Polled | None]) -> list[str | None]:
    return [found and found[0].id for found in polled]


async def polls(reader: PollReader, ids: list[str]) -> list[Polled | None]:
    return await asyncio.gather(*map(reader.read, ids))


async def turns() -> None:
    """The event loop has done everything that it can do without the server."""
    await asyncio.sleep(0.05)


def test_polls_that_arrive_together_share_a_read_and_a_connection(services: Services) -> None:
    ids = [job.id for job in queued(services, 3)]
    asked = [*ids, "video_x", ids[0]]

    async def together(reader: PollReader) -> tuple[list[Polled | None], int, int]:
        before, connections = scripts_run(services), len(services.redis.client_list())
        found = await polls(reader, asked)
        return found, scripts_run(services) - before, len(services.redis.client_list()) - connections

    found, reads, connections = with_reader(services, together)
    assert (ids_of(found), reads, connections) == ([*ids, None, ids[0]], 1, 0)
    assert [polled and polled[1] for polled in found] == [0, 1, 2, None, 0]


def test_a_read_is_limited(services: Services) -> None:
    async def many(reader: PollReader) -> int:
        before = scripts_run(services)
        await polls(reader, ["video_x"] * (2 * BATCH_SIZE + 1))
        return scripts_run(services) - before

    assert with_reader(services, many) == 3


def test_polls_that_arrive_during_a_read_share_the_next_one(services: Services, server: Valkey) -> None:
    first, *others = [job.id for job in queued(services, 4)]

    async def meanwhile(reader: PollReader) -> tuple[list[Polled | None], int]:
        before = scripts_run(services)
        server.freeze()
        try:
            asked = [asyncio.create_task(reader.read(first))]
            for video_id in others:
                await turns()
                asked.append(asyncio.create_task(reader.read(video_id)))
            await turns()
        finally:
            server.thaw()
        return await asyncio.gather(*asked), scripts_run(services) - before

    found, reads = with_reader(services, meanwhile)
    assert (ids_of(found), reads) == ([first, *others], 2)


def test_a_client_that_disconnects_does_not_affect_the_others(services: Services, server: Valkey) -> None:
    left, stayed = [job.id for job in queued(services, 2)]

    async def leave(reader: PollReader) -> Polled | None:
        server.freeze()
        try:
            leaving, staying = (asyncio.create_task(reader.read(video_id)) for video_id in (left, stayed))
            await turns()
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
        finally:
            server.thaw()
        return await staying

    assert ids_of([with_reader(services, leave)]) == [stayed]


def test_a_failed_read_reaches_its_own_polls_and_the_next_read_works(services: Services) -> None:
    (job,) = queued(services)
    redis: Any = services.redis

    async def fail(reader: PollReader) -> tuple[list[Any], Polled | None]:
        redis.execute_command("ACL", "SETUSER", "default", "-evalsha")
        try:
            failed = await asyncio.gather(reader.read(job.id), reader.read("video_x"), return_exceptions=True)
        finally:
            redis.execute_command("ACL", "SETUSER", "default", "+@all")
        return failed, await reader.read(job.id)

    failed, found = with_reader(services, fail)
    assert [type(e) for e in failed] == [NoPermissionError, NoPermissionError]
    assert ids_of([found]) == [job.id]


def test_a_damaged_record_affects_its_own_poll_only(services: Services) -> None:
    sound, damaged = queued(services, 2)
    services.redis.hset(f"ivm:job:{damaged.id}", "step", "many")
    found = with_reader(services, lambda reader: polls(reader, [sound.id, damaged.id, sound.id]))
    assert ids_of(found) == [sound.id, None, sound.id]


def test_a_server_that_was_restarted_is_read_again(services: Services, server: Valkey) -> None:
    (job,) = queued(services)

    async def restart(reader: PollReader) -> Polled | None:
        server.kill()
        server.start()  # on the same port, without the script
        return await reader.read(job.id)

    assert ids_of([with_reader(services, restart)]) == [job.id]


def test_what_changes_is_shown_at_once(services: Services) -> None:
    first, second = queued(services, 2)

    async def change(reader: PollReader) -> list[Polled | None]:
        before = [await reader.read(second.id) for _ in range(2)]
        services.store.cancel(first.id)
        moved = await reader.read(second.id)
        services.store.cancel(second.id)
        return [*before, moved, await reader.read(second.id)]

    bodies = [json.loads(polled[2]) for polled in with_reader(services, change)]
    shown = [(body["status"], body["queue_position"]) for body in bodies]
    assert shown == [("queued", 1), ("queued", 1), ("queued", 0), ("failed", None)]


def test_a_video_with_urls_is_rendered_for_each_poll(services: Services, tmp_path: Path) -> None:
    """They expire."""
    (job,) = queued(services)
    finish(services, job.id, b"mp4", scratch=tmp_path)
    found = with_reader(services, lambda reader: reader.read(job.id))
    assert (found[0].id, found[1:]) == (job.id, (None, None))
