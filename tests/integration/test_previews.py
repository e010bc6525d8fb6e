"""The preview of a video that is being sampled: who sees it, when, and when it goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from rq import Queue

from service.api.routes.video_events import event_id
from service.jobs.event_log import EVENTS
from service.jobs.keys import preview_key
from service.jobs.model import Job, Phase
from service.jobs.store import JobStore, LeaseReply
from service.settings import Settings
from service.wiring import Services
from tests.api_calls import answer_of, create, error_of
from tests.factories import create_job

FIRST, SECOND = b"RIFF....WEBP first", b"RIFF....WEBP second"


@pytest.fixture
def settings(valkey: str, tmp_path: Path) -> Settings:
    return Settings(redis_url=valkey, data_dir=tmp_path)  # API keys are required by default


@pytest.fixture
def headers(services: Services) -> dict[str, str]:
    return {"authorization": f"Bearer {services.keys.create('owner')[1]}"}


@pytest.fixture
def video_id(client: TestClient, services: Services, headers: dict[str, str]) -> str:
    """A running video of that key."""
    client.headers.update(headers)
    made = create(client)["id"]
    del client.headers["authorization"]
    services.store.start(made, "e1")
    return made


def report(services: Services, video_id: str, preview: bytes | None, phase: Phase = Phase.SAMPLING) -> None:
    assert services.store.report_progress(video_id, "e1", 3, 20, phase, preview) is LeaseReply.CONTINUE


def shown(client: TestClient, video_id: str, headers: dict[str, str]) -> dict[str, Any]:
    return answer_of(client.get(f"/v1/videos/{video_id}", headers=headers))


def test_the_url_shows_the_newest_preview_and_changes_with_every_one(
    client: TestClient, services: Services, video_id: str, headers: dict[str, str]
) -> None:
    report(services, video_id, None)
    assert shown(client, video_id, headers)["preview_url"] is None
    events, urls = list[str](), list[str]()
    for picture in (FIRST, SECOND):
        before = services.redis.xlen(EVENTS)
        report(services, video_id, picture)
        assert services.redis.xlen(EVENTS) == before + 1, "open pages get it, though the step is the same"
        urls.append(shown(client, video_id, headers)["preview_url"])
        job = services.store.get(video_id)
        assert job is not None
        events.append(event_id(job, None))
        answer = client.get(urls[-1])
        assert (answer.status_code, answer.content) == (200, picture)
        assert answer.headers["content-type"] == "image/webp"
        assert answer.headers["cache-control"] == "private, no-cache"
    assert len(set(urls)) == len(set(events)) == 2
    report(services, video_id, None)
    assert shown(client, video_id, headers)["preview_url"] == urls[-1]
    assert answer_of(client.get("/v1/videos", headers=headers))["data"][0]["preview_url"] == urls[-1]
    report(services, video_id, None, Phase.DECODING)
    assert shown(client, video_id, headers)["preview_url"] is None


def test_a_preview_is_for_its_owner_and_holders_of_its_url(
    client: TestClient, services: Services, video_id: str, headers: dict[str, str]
) -> None:
    report(services, video_id, FIRST)
    path = f"/v1/videos/{video_id}/content?variant=preview"
    assert client.get(path, headers=headers).content == FIRST
    assert client.head(path, headers=headers).status_code == 200
    assert client.get(path).status_code == 401
    other = {"authorization": f"Bearer {services.keys.create('other')[1]}"}
    assert client.get(path, headers=other).status_code == 404
    url = shown(client, video_id, headers)["preview_url"]
    for changed in (url.replace("preview", "thumbnail"), url.replace("version=", "version=9"), url[:-2] + "AA"):
        assert error_of(client.get(changed), 403)["code"] == "url_not_valid"


def ended(services: Services, video_id: str, how: str) -> None:
    store = services.store
    if how == "cancelled":
        assert store.finish_cancel(video_id, "e1")
    elif how == "requeued":
        job = store.get(video_id)
        assert job is not None
        assert store.requeue(job, "e1")
    else:
        store.delete(video_id)
        assert store.finish_cancel(video_id, "e1")


@pytest.mark.parametrize("how", ["cancelled", "requeued", "deleted"])
def test_it_goes_when_the_execution_ends(
    client: TestClient, services: Services, video_id: str, headers: dict[str, str], how: str
) -> None:
    report(services, video_id, FIRST)
    url = shown(client, video_id, headers)["preview_url"]
    ended(services, video_id, how)
    assert services.redis.exists(preview_key(video_id)) == 0
    gone = error_of(client.get(url), 404)
    if how == "deleted":
        assert gone["code"] == "video_not_found"
        return
    assert gone["message"] == (
        f"The video '{video_id}' has no preview now; it has one while it is sampled, some seconds after its start."
    )
    assert shown(client, video_id, headers)["preview_url"] is None
    if how == "requeued":  # the next execution starts without one
        services.store.start(video_id, "e1")
        report(services, video_id, None)
        assert shown(client, video_id, headers)["preview_url"] is None


def test_a_completed_video_has_none(
    client: TestClient, services: Services, headers: dict[str, str], finished: Callable[[str, bytes], None]
) -> None:
    client.headers.update(headers)
    video_id = create(client)["id"]
    services.store.start(video_id, "execution")
    services.store.report_progress(video_id, "execution", 3, 20, Phase.SAMPLING, FIRST)
    finished(video_id, b"mp4")
    video = shown(client, video_id, headers)
    assert video["preview_url"] is None
    assert video["thumbnail_url"]
    assert services.redis.exists(preview_key(video_id)) == 0
    assert "no preview now" in error_of(client.get(f"/v1/videos/{video_id}/content?variant=preview"), 404)["message"]


def test_a_worker_that_lost_its_job_stores_none(store: JobStore, queue: Queue, services: Services) -> None:
    job = create_job(store, queue)
    zombie = store.start(job.id, "zombie")
    assert zombie is not None
    store.requeue(zombie, "zombie")
    store.start(job.id, "owner")
    before: Job | None = store.get(job.id)
    assert store.report_progress(job.id, "zombie", 9, 20, Phase.SAMPLING, FIRST) is LeaseReply.LOST
    assert services.redis.exists(preview_key(job.id)) == 0
    assert store.get(job.id) == before


def test_it_outlives_slow_steps_and_expires_if_nothing_ends_the_execution(
    store: JobStore, queue: Queue, services: Services
) -> None:
    job = create_job(store, queue)
    store.start(job.id, "e1")
    store.report_progress(job.id, "e1", 9, 20, Phase.SAMPLING, FIRST)
    assert 290 < services.redis.ttl(preview_key(job.id)) <= 300
    services.redis.expire(preview_key(job.id), 5)
    store.renew_lease(job.id, "e1")
    assert 290 < services.redis.ttl(preview_key(job.id)) <= 300
