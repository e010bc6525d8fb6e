"""Server-Sent Events over a real connection."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from service.api import sse
from service.settings import Settings
from service.wiring import Services, open_services
from tests.conftest import serve
from tests.factories import PROMPT

Event = dict[str, Any]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "POLL_INTERVAL_S", 0.02)


@pytest.fixture
def http(server: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
def video_id(http: httpx2.Client) -> str:
    return http.post("/v1/videos", json={"prompt": PROMPT}).json()["id"]


@contextmanager
def following(http: httpx2.Client, video_id: str, after: str | None = None) -> Iterator[Iterator[Event]]:
    headers = {"last-event-id": after} if after else {}
    with http.stream("GET", f"/v1/videos/{video_id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        yield read(answer.iter_lines())


def read(lines: Iterator[str]) -> Iterator[Event]:
    event: Event = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            event[name] = value
        elif event:
            if "data" in event:
                yield event | {"data": json.loads(event["data"])}
            event = {}


def test_from_the_queue_to_the_end(
    http: httpx2.Client, services: Services, video_id: str, finished: Callable[[str, bytes], None]
) -> None:
    with following(http, video_id) as events:
        first = next(events)
        assert first["event"] == "video.progress"
        assert (first["data"]["status"], first["data"]["queue_position"]) == ("queued", 0)
        services.store.start(video_id, "execution")
        assert next(events)["data"]["status"] == "in_progress"
        for step in (5, 10):
            services.store.report_progress(video_id, "execution", step, 20, "sampling")
            assert next(events)["data"]["progress"] == step * 5
        finished(video_id, b"mp4")
        last = next(events)
        assert (last["event"], last["data"]["progress"]) == ("video.completed", 100)
        assert list(events) == []
    assert last["data"] == http.get(f"/v1/videos/{video_id}").json()


def test_a_client_that_reconnects_gets_the_current_state_only(
    http: httpx2.Client, services: Services, video_id: str, finished: Callable[[str, bytes], None]
) -> None:
    services.store.start(video_id, "execution")
    services.store.report_progress(video_id, "execution", 5, 20, "sampling")
    with following(http, video_id) as events:
        seen = next(events)["id"]
    with following(http, video_id, after=seen) as events:
        threading.Timer(0.2, services.store.report_progress, (video_id, "execution", 6, 20, "sampling")).start()
        assert next(events)["data"]["step"] == 6
    finished(video_id, b"mp4")
    with following(http, video_id, after=seen) as events:
        last = next(events)
    assert last["event"] == "video.completed"
    over = http.get(f"/v1/videos/{video_id}/events", headers={"last-event-id": last["id"]})
    assert (over.status_code, over.content) == (204, b"")


def test_a_cancelled_video_ends_as_failed(http: httpx2.Client, video_id: str) -> None:
    http.post(f"/v1/videos/{video_id}/cancel")
    with following(http, video_id) as events:
        [only] = list(events)
    assert (only["event"], only["data"]["error"]["code"]) == ("video.failed", "cancelled")


def test_a_silent_stream_is_kept_open(http: httpx2.Client, video_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEPALIVE_INTERVAL_S", 0.05)
    with http.stream("GET", f"/v1/videos/{video_id}/events") as answer:
        assert any(line.startswith(":") for line in answer.iter_lines())


def test_an_unknown_video_is_404(http: httpx2.Client) -> None:
    assert http.get("/v1/videos/video_x/events").json()["error"]["code"] == "video_not_found"


def test_a_deleted_video_ends_its_stream(http: httpx2.Client, services: Services, video_id: str) -> None:
    with following(http, video_id) as events:
        next(events)
        services.redis.delete(f"ivm:job:{video_id}")
        assert list(events) == []


def test_open_streams_are_limited_and_a_closed_one_frees_its_slot(settings: Settings) -> None:
    services = open_services(settings.model_copy(update={"max_held": 2}))
    with serve(services) as url, httpx2.Client(base_url=url, timeout=30, trust_env=False) as http:
        video_id = http.post("/v1/videos", json={"prompt": PROMPT}).json()["id"]
        with following(http, video_id) as one, following(http, video_id) as two:
            next(one), next(two)
            refused = http.get(f"/v1/videos/{video_id}/events")
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert refused.headers["retry-after"]
        deadline = time.monotonic() + 20
        while True:
            with http.stream("GET", f"/v1/videos/{video_id}/events") as answer:
                if answer.status_code == 200:
                    break
            assert time.monotonic() < deadline, "the places of streams that ended are not free again"
            time.sleep(0.05)
    services.close()
