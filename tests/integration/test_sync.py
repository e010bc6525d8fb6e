"""POST /v1/videos/sync over a real connection; the tests write to the store as a worker does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from service.jobs.model import Job, JobError, JobState
from service.settings import Settings
from service.wiring import Services
from tests.factories import PROMPT
from tests.processes import wait_for

Finish = Callable[[str, bytes], None]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"sync_timeout_s": 20.0, "max_held": 1})


@pytest.fixture
def http(server: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def next_job(services: Services) -> Callable[[], Job]:
    return lambda: wait_for(lambda: next(iter(services.store.list()[0]), None), timeout_s=30)


@pytest.fixture
def on_wait(next_job: Callable[[], Job]) -> Iterator[Callable[[Callable[[str], Any]], None]]:
    """on_wait(act): act(video_id) in a thread, once there is a video."""
    threads: list[threading.Thread] = []

    def start(act: Callable[[str], Any]) -> None:
        threads.append(threading.Thread(target=lambda: act(next_job().id)))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join(30)


def post(http: httpx2.Client, **headers: str) -> httpx2.Response:
    return http.post("/v1/videos/sync", json={"prompt": PROMPT}, headers=headers)


def test_the_response_is_the_mp4(http: httpx2.Client, finished: Finish, on_wait: Any) -> None:
    on_wait(lambda video_id: finished(video_id, b"mp4"))
    answer = post(http)
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"mp4", "video/mp4")
    shown = http.get(f"/v1/videos/{answer.headers['x-video-id']}").json()
    assert shown["status"] == "completed"
    assert answer.headers["content-length"] == "3"


@pytest.mark.parametrize(
    ("error", "status"),
    [("internal_error", 500), ("out_of_memory", 500), ("invalid_input", 400), ("start_timeout", 504)],
)
def test_a_video_that_fails_is_an_error_that_no_client_repeats(
    http: httpx2.Client, services: Services, on_wait: Any, error: str, status: int
) -> None:
    on_wait(lambda video_id: services.store.fail(video_id, None, JobError(code=error, message="It broke.")))
    answer = post(http)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, error)
    assert answer.json()["error"]["message"] == "It broke."
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-video-id"].startswith("video_")


def test_a_cancelled_video_is_an_error_with_its_code(http: httpx2.Client, services: Services, on_wait: Any) -> None:
    on_wait(services.store.cancel)
    answer = post(http)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "cancelled")


class TestBounds:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"sync_timeout_s": 0.3})

    def test_after_the_timeout_the_video_continues(self, http: httpx2.Client, services: Services) -> None:
        answer = post(http)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "sync_timeout")
        assert answer.headers["x-should-retry"] == "false"
        job = services.store.get(answer.headers["x-video-id"])
        assert job is not None
        assert job.state is JobState.QUEUED


def test_waiting_requests_are_limited(http: httpx2.Client, server: str, finished: Finish, next_job: Any) -> None:
    waiting: list[httpx2.Response] = []
    first = threading.Thread(
        target=lambda: waiting.append(httpx2.post(f"{server}/v1/videos/sync", json={"prompt": PROMPT}, timeout=60))
    )
    first.start()
    job = next_job()
    refused = post(http)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    finished(job.id, b"mp4")
    first.join(30)
    assert waiting[0].content == b"mp4"


@pytest.mark.parametrize(("key", "state"), [(None, JobState.CANCELLED), ("mine", JobState.QUEUED)])
def test_a_client_that_disconnects_cancels_unless_it_sent_an_idempotency_key(
    server: str, services: Services, key: str | None, state: JobState
) -> None:
    headers = {"idempotency-key": key} if key else {}
    with httpx2.Client(base_url=server, trust_env=False) as impatient, pytest.raises(httpx2.ReadTimeout):
        impatient.post("/v1/videos/sync", json={"prompt": PROMPT}, headers=headers, timeout=3.0)
    [job], _ = services.store.list()
    if state is JobState.CANCELLED:
        wait_for(lambda: services.store.get(job.id).state is state or None, timeout_s=30)  # type: ignore[union-attr]
    else:
        time.sleep(1.0)
        assert services.store.get(job.id).state is state  # type: ignore[union-attr]


def test_the_request_can_be_repeated_with_its_idempotency_key(
    http: httpx2.Client, finished: Finish, on_wait: Any
) -> None:
    on_wait(lambda video_id: finished(video_id, b"mp4"))
    first, again = post(http, **{"idempotency-key": "one"}), post(http, **{"idempotency-key": "one"})
    assert first.headers["x-video-id"] == again.headers["x-video-id"]
    assert again.content == b"mp4"
    assert again.headers["idempotent-replayed"] == "true"
