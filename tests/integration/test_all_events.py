"""GET /v1/events over real connections: what a page receives of its videos and the queue."""

from __future__ import annotations

import threading
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

from service import api_keys
from service.api import event_hub, event_subscription, sse
from service.api_keys import KEYS, ApiKey, Scope
from service.jobs.event_log import EVENTS
from service.jobs.keys import job_key
from service.jobs.rq_queues import generate_queue
from service.settings import Settings
from service.wiring import Services, open_services
from tests.conftest import serve
from tests.event_pages import Page, open_page
from tests.factories import PROMPT, create_job
from tests.processes import wait_for
from tests.valkey import Valkey


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "POLL_INTERVAL_S", 0.05)
    monkeypatch.setattr(event_hub, "INTERVAL_S", 0.02)
    monkeypatch.setattr(event_hub, "WAIT_S", 0.1)
    monkeypatch.setattr(event_hub, "RETRY_S", 0.1)
    monkeypatch.setattr(event_hub, "QUEUE_INTERVAL_S", 0.1)
    monkeypatch.setattr(api_keys, "CACHE_S", 0.1)


@pytest.fixture
def http(server: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server, timeout=30, trust_env=False) as client:
        yield client


def hub_threads() -> int:
    return sum(thread.name == "events" for thread in threading.enumerate())


def test_the_life_of_a_video(
    http: httpx2.Client, services: Services, finished: Callable[[str, bytes], None], queue: Queue
) -> None:
    with open_page(http) as page:
        first = page.next(queue=True)
        assert first["event"] == "queue"
        assert first["data"] == http.get("/v1/queue").json()
        video_id = http.post("/v1/videos", json={"prompt": PROMPT}).json()["id"]
        assert page.next()["data"]["status"] == "queued"
        services.store.start(video_id, "execution")
        event = page.next()
        assert (event["event"], event["data"]["status"]) == ("video.progress", "in_progress")
        services.store.report_progress(video_id, "execution", 5, 20, "sampling")
        assert page.next()["data"]["step"] == 5
        finished(video_id, b"mp4")
        event = page.next()
        assert (event["event"], event["data"]) == ("video.completed", http.get(f"/v1/videos/{video_id}").json())
        deleted = http.delete(f"/v1/videos/{video_id}").json()
        event = page.next()
        assert (event["event"], event["data"]) == ("video.deleted", deleted)


def test_every_transition_is_an_event(http: httpx2.Client, services: Services, queue: Queue) -> None:
    store = services.store
    with open_page(http) as page:

        def seen() -> tuple[str, str]:
            event = page.next()
            data = event["data"]
            return event["event"], f"{data.get('status')} {data.get('phase')}"

        job = create_job(store, queue)
        assert seen() == ("video.created", "queued None")
        assert store.start(job.id, "e1")
        assert seen() == ("video.progress", "in_progress None")
        store.report_progress(job.id, "e1", 0, 20, "encoding")
        assert seen() == ("video.progress", "in_progress encoding")
        assert store.requeue(job, "e1")
        assert seen() == ("video.progress", "queued None")
        assert store.start(job.id, "e2")
        assert seen() == ("video.progress", "in_progress None")
        store.cancel(job.id)
        assert seen() == ("video.progress", "in_progress None")
        assert store.finish_cancel(job.id, "e2")
        assert seen() == ("video.failed", "failed None")
        record = store.get(job.id)
        assert record
        assert store.delete(job.id, only_ended=True)  # as retention does
        assert seen()[0] == "video.deleted"
        assert store.restore(record)
        assert seen() == ("video.failed", "failed None")
        running = create_job(store, queue)
        assert seen()[0] == "video.created"
        assert store.start(running.id, "e1")
        assert seen()[0] == "video.progress"
        store.delete(running.id)
        assert seen()[0] == "video.deleted"
        assert store.finish_cancel(running.id, "e1")  # no second event
        damaged = create_job(store, queue)
        assert seen()[0] == "video.created"
        assert store.fail_damaged(damaged.id)
        assert seen()[0] == "video.failed"


def test_a_renewal_without_progress_is_no_event(services: Services, queue: Queue) -> None:
    job = create_job(services.store, queue)
    services.store.start(job.id, "e1")
    redis: Any = services.redis
    before = redis.xlen(EVENTS)
    for step in (3, 3, 2, 3):
        services.store.report_progress(job.id, "e1", step, 20, "sampling")
        services.store.renew_lease(job.id, "e1")
    assert redis.xlen(EVENTS) == before + 1


def test_a_page_that_reconnects_gets_the_newest_event_of_each_video_that_changed(
    http: httpx2.Client, services: Services, queue: Queue
) -> None:
    store = services.store
    with open_page(http) as page:
        before = page.start["id"]  # although there was no event yet
    jobs = [create_job(store, queue) for _ in range(2)]
    with open_page(http, after=before) as page:
        assert [page.start["data"]["id"], page.next()["data"]["id"]] == [job.id for job in jobs]
        before = page.last_id
    for job in reversed(jobs):
        store.start(job.id, "e1")
        store.report_progress(job.id, "e1", 4, 20, "sampling")
    gone = create_job(store, queue)
    store.delete(gone.id)
    with open_page(http, after=before) as page:
        events = [page.start, page.next(), page.next()]
        assert [event["data"]["id"] for event in events] == [jobs[1].id, jobs[0].id, gone.id]
        assert [event["event"] for event in events] == ["video.progress", "video.progress", "video.deleted"]
        store.report_progress(jobs[0].id, "e1", 5, 20, "sampling")
        assert page.next()["data"]["step"] == 5


def test_what_cannot_be_resumed_is_a_reset(http: httpx2.Client, services: Services, queue: Queue) -> None:
    redis: Any = services.redis
    with open_page(http) as page:
        create_job(services.store, queue)
        old = page.next()["id"]
    newest = [create_job(services.store, queue) for _ in range(3)][-1]
    redis.xtrim(EVENTS, maxlen=2, approximate=False)
    for after in (old, "1-1", "9999999999999999999-0"):
        with open_page(http, after=after) as page:
            assert (page.start["event"], page.start["data"]) == ("reset", {})
            again = page.start["id"]
    services.store.start(newest.id, "e1")
    with open_page(http, after=again) as page:
        assert page.start["data"]["status"] == "in_progress", "a reset has an id from which to resume"


@pytest.mark.parametrize("nonsense", ["x", "1", "-1", "1-1-1", "99999999999999999999-0"])
def test_nonsense_as_last_event_id_is_refused(http: httpx2.Client, nonsense: str) -> None:
    answer = http.get("/v1/events", headers={"last-event-id": nonsense})
    assert answer.status_code == 400
    assert "Last-Event-ID" in answer.json()["error"]["message"]


def test_progress_is_sent_about_twice_per_second_and_the_newest_arrives(
    http: httpx2.Client, services: Services, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_hub, "INTERVAL_S", 0.25)
    job = create_job(services.store, queue)
    services.store.start(job.id, "e1")
    with open_page(http) as page:
        began = time.monotonic()
        for step in range(1, 51):
            services.store.report_progress(job.id, "e1", step, 50, "sampling")
            time.sleep(0.01)
        steps = [page.next()["data"]["step"]]
        while steps[-1] < 50:
            steps.append(page.next()["data"]["step"])
        assert len(steps) <= 2 + (time.monotonic() - began) / 0.25
        assert steps == sorted(steps)


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
            assert {page.start["data"]["id"], page.next()["data"]["id"]} == {jobs[2].id, last.id}

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
        assert page.next()["event"] == "reset"
        services.store.start(first.id, "e1")
        while (event := page.next())["data"].get("status") != "in_progress":
            assert event["event"] in ("reset", "video.created")


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


def test_the_queue_is_sent_when_it_changes(http: httpx2.Client, services: Services, queue: Queue) -> None:
    with open_page(http) as page:
        assert page.next(queue=True)["data"]["data"][0]["queued"] == 0
        create_job(services.store, queue)
        while (event := page.next(queue=True))["event"] != "queue":
            pass
        assert event["data"]["data"][0]["queued"] == 1
        assert event["data"] == http.get("/v1/queue").json()


def test_a_silent_stream_sends_an_id_to_resume_from(
    http: httpx2.Client, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "KEEPALIVE_INTERVAL_S", 0.1)
    with http.stream("GET", "/v1/events") as answer:
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith("retry")) == f"retry: {sse.RETRY_MS}"
        assert [line for _, line in zip(range(3), (line for line in lines if line.startswith("id")), strict=False)]

