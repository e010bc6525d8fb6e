"""GET /v1/events: who sees what, and what bounds it, over real connections."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import Redis
from rq import Queue

from service.api import event_hub, event_subscription
from service.api_keys import KEYS, ApiKey, Scope
from service.jobs.keys import job_key
from service.jobs.rq_queues import generate_queue
from service.settings import Settings
from service.wiring import Services, open_services
from tests.conftest import serve
from tests.event_pages import Page, hub_threads, open_page, quick_events
from tests.factories import PROMPT, create_job
from tests.processes import wait_for
from tests.valkey import Valkey


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_events(monkeypatch)


@pytest.fixture
def http(server: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server, timeout=30, trust_env=False) as client:
        yield client


class TestKeys:
    @pytest.fixture
    def url(self, services: Services, settings: Settings) -> Iterator[str]:
        with serve(replace(services, settings=settings.model_copy(update={"auth": "keys"}))) as url:
            yield url

    @pytest.fixture
    def clients(self, services: Services, url: str) -> Iterator[Callable[..., tuple[ApiKey, httpx2.Client]]]:
        with ExitStack() as stack:

            def make(**options: Any) -> tuple[ApiKey, httpx2.Client]:
                key, secret = services.keys.create("test", **options)
                headers = {"authorization": f"Bearer {secret}"}
                http = httpx2.Client(base_url=url, headers=headers, timeout=30, trust_env=False)
                return key, stack.enter_context(http)

            yield make

    def test_videos_of_other_owners_never_arrive(self, services: Services, clients: Any, queue: Queue) -> None:
        store = services.store
        (mine, http), (other, _) = clients(), clients()
        dashboards = [clients(scopes={scope})[1] for scope in (Scope.READ_ALL, Scope.ADMIN)]
        with ExitStack() as stack:
            page, *all_pages = [stack.enter_context(open_page(one)) for one in (http, *dashboards)]
            start = page.last_id
            jobs = [create_job(store, queue, owner=owner) for owner in (other.owner, "local", mine.owner)]
            for job in jobs:
                store.start(job.id, "e1")
                store.delete(job.id)
            last = create_job(store, queue, owner=mine.owner)

            def ids_until_last(page: Page) -> set[str]:
                seen = [page.next()["data"]["id"]]
                while seen[-1] != last.id:
                    seen.append(page.next()["data"]["id"])
                return set(seen)

            assert ids_until_last(page) == {jobs[2].id, last.id}
            for one in all_pages:
                assert ids_until_last(one) == {last.id, *(job.id for job in jobs)}
        with open_page(http, after=start) as page:
            assert {page.next()["data"]["id"], page.next()["data"]["id"]} == {jobs[2].id, last.id}

    def test_a_damaged_record_is_shown_to_the_key_whose_list_has_it(
        self, services: Services, clients: Any, queue: Queue
    ) -> None:
        (mine, http), (_, other) = clients(), clients()
        job = create_job(services.store, queue, owner=mine.owner)
        redis: Redis = services.redis
        redis.hset(job_key(job.id), "owner", "{")
        with open_page(http) as page, open_page(other) as others:
            services.store.fail_damaged(job.id)
            assert page.next()["data"]["error"]["code"] == "record_damaged"
            own = other.post("/v1/videos", json={"prompt": PROMPT}).json()
            assert others.next()["data"]["id"] == own["id"]

    @pytest.mark.parametrize("scopes", [None, {Scope.WEBHOOKS}, {Scope.READ}], ids=["revoked", "no scope", "fewer"])
    def test_a_stream_ends_when_its_key_may_no_longer_read_the_same(
        self, services: Services, clients: Any, scopes: set[Scope] | None
    ) -> None:
        key, http = clients(scopes={Scope.READ_ALL})
        with open_page(http) as page:
            if scopes is None:
                services.keys.revoke(key.id)
            else:
                redis: Any = services.redis
                for digest, record in redis.hgetall(KEYS).items():
                    changed = ApiKey.model_validate_json(record).model_copy(update={"scopes": frozenset(scopes)})
                    redis.hset(KEYS, digest, changed.model_dump_json())
            page.rest()

    def test_open_streams_count_against_the_share_of_the_key(self, services: Services, settings: Settings) -> None:
        changed = settings.model_copy(update={"auth": "keys", "max_held_per_key": 2})
        headers = {"authorization": f"Bearer {services.keys.create('test')[1]}"}
        with (
            serve(replace(services, settings=changed)) as url,
            httpx2.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as http,
        ):
            with open_page(http), open_page(http):
                refused = http.get("/v1/events")
                assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
                assert refused.headers["retry-after"]
            wait_for(lambda: http.head("/v1/events").status_code == 200 or None)
        wait_for(lambda: hub_threads() == 0 or None)


def test_a_client_that_reads_too_slowly_is_reset_instead_of_filling_memory(
    http: httpx2.Client, services: Services, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So small a buffer that a few videos that come together overflow it."""
    monkeypatch.setattr(event_subscription, "MAX_PENDING_BYTES", 8_000)
    monkeypatch.setattr(event_hub, "INTERVAL_S", 0.3)
    with open_page(http) as page:
        first = create_job(services.store, queue)
        assert page.next()["data"]["id"] == first.id
        for _ in range(40):  # within the interval
            create_job(services.store, queue)
        event = page.next()
        assert event["event"] == "reset"
        services.store.start(first.id, "e1")
        steps = iter(range(1, 20))
        while event["data"].get("status") != "in_progress":
            if event["event"] == "reset":  # what happens after the last one arrives
                services.store.report_progress(first.id, "e1", next(steps), 20, "sampling")
            event = page.next()


def test_many_streams_share_one_connection_to_redis(services: Services, server: str, queue: Queue) -> None:
    redis: Any = services.redis

    def following() -> list[dict[str, str]]:
        return [client for client in redis.client_list() if client["cmd"] == "xread"]

    def clients() -> int:
        return len(redis.client_list())

    with ExitStack() as stack:
        http = stack.enter_context(httpx2.Client(base_url=server, timeout=30, trust_env=False))
        pages = [stack.enter_context(open_page(http))]
        wait_for(lambda: following() or None)
        before = clients()
        pages += [stack.enter_context(open_page(http)) for _ in range(19)]
        job = create_job(services.store, queue)
        assert {page.next()["data"]["id"] for page in pages} == {job.id}
        wait_for(lambda: len(following()) == 1 or None)
        assert hub_threads() == 1
        assert clients() < before + 10, "the thread pool opens some while many pages connect"
    wait_for(lambda: hub_threads() == 0 or None)


def test_redis_is_unreachable_for_a_while(settings: Settings, tmp_path: Path) -> None:
    """After a restart with the data, streams go on; after one without, pages read their lists again."""
    with Valkey(tmp_path / "redis") as valkey, ExitStack() as stack:
        services = open_services(settings.model_copy(update={"redis_url": valkey.url}))
        stack.callback(services.close)
        http = stack.enter_context(
            httpx2.Client(base_url=stack.enter_context(serve(services)), timeout=60, trust_env=False)
        )
        queue = generate_queue(services.redis, "demo")
        page = stack.enter_context(open_page(http))
        job = create_job(services.store, queue)
        assert page.next()["data"]["id"] == job.id
        valkey.kill()
        time.sleep(0.3)
        valkey.start()
        services.store.start(job.id, "e1")
        assert page.next()["data"]["status"] == "in_progress"
        valkey.kill()
        for file in (valkey.folder / "appendonlydir").iterdir():
            file.unlink()
        valkey.start()
        assert page.next()["event"] == "reset"
        new = create_job(services.store, queue)
        assert page.next()["data"]["id"] == new.id


def test_streams_end_when_the_server_stops(services: Services) -> None:
    running = serve(services)
    with running as url, httpx2.Client(base_url=url, timeout=30, trust_env=False) as http, open_page(http) as page:
        running._uvicorn.config.app.state.open_requests.stopping.set()
        began = time.monotonic()
        page.rest()
        assert time.monotonic() - began < 5
