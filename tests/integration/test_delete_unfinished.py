"""DELETE of a queued or running video cancels and deletes it, and nothing of it remains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.jobs.keys import ACTIVE, ENDED, INDEXED, job_key, lease_key
from service.jobs.model import LOCAL, JobError
from service.jobs.rq_queues import queue_key
from service.jobs.store import LeaseReply
from service.maintenance.lost_job_reaper import LostJobReaper
from service.maintenance.retention import Retention
from service.storage import object_keys, sha256_of
from service.webhook_dispatcher.fan_out import FanOut
from service.wire.video import Renderer
from service.wiring import Services
from tests.api_calls import create, error_of
from tests.factories import PROMPT, make_output

FAILURE = JobError(code="timeout", message="Too slow.")


@pytest.fixture
def endpoint(services: Services) -> None:
    events: Any = ("video.completed", "video.failed")
    services.webhooks.endpoints.create(LOCAL, name="n", url="https://example.com", event_types=events)


@pytest.fixture
def running(client: TestClient, services: Services, endpoint: None) -> str:
    video = create(client)["id"]
    start(services, video)
    return video


def start(services: Services, video: str) -> None:
    """Take a video from the queue and start it, as a worker does."""
    redis: Any = services.redis
    assert redis.lrem(queue_key("demo"), 1, video) == 1
    assert services.store.start(video, "e") is not None


def delete(client: TestClient, video: str) -> None:
    answer = client.delete(f"/v1/videos/{video}")
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"id": video, "object": "video.deleted", "deleted": True}


def put_files(services: Services, video: str, folder: Path) -> None:
    """What a worker leaves that is killed in the middle of an upload."""
    file = folder / "part"
    file.write_bytes(b"part")
    for key in (f"{object_keys.execution(video, 'e')}video.mp4", object_keys.checkpoint(video)):
        services.storage.put(file, key=key, media_type="video/mp4", sha256=sha256_of(file))


def maintain(services: Services) -> None:
    retention = Retention(services.redis, services.store, services.storage, retention_s=3600, tidy_after_s=0)
    reaper = LostJobReaper(services.redis, services.store, retention, grace_s=0, max_attempts=3)
    for _ in range(3):
        reaper.run_once()
    retention.run_once()


def assert_nothing_is_left(services: Services, video: str) -> None:
    redis: Any = services.redis
    left = {key.decode() for key in redis.keys("ivm:*")} - {"ivm:deleted", INDEXED}
    assert not {key for key in left if key.startswith(("ivm:job", "ivm:index", ACTIVE, ENDED))}
    assert redis.lrange(queue_key("demo"), 0, -1) == []
    assert not list(services.storage.list(object_keys.VIDEOS))
    assert services.storage.size(object_keys.checkpoint(video)) is None


def events(services: Services) -> list[tuple[str, str]]:
    """Type and error code of each event."""
    FanOut(services.webhooks, Renderer(services.settings, services.storage)).run_once()
    found, _ = services.webhooks.deliveries.list(LOCAL)
    bodies = [json.loads(delivery.body) for delivery in found]
    return [(body["type"], (body["data"]["error"] or {}).get("code", "")) for body in bodies]


@pytest.mark.usefixtures("endpoint")
def test_a_queued_video_is_deleted_at_once(client: TestClient, services: Services, tmp_path: Path) -> None:
    others = [create(client)["id"] for _ in range(2)]
    video = create(client)["id"]
    put_files(services, video, tmp_path)  # of an earlier attempt
    delete(client, others[0])
    assert client.get(f"/v1/videos/{video}").json()["queue_position"] == 1
    delete(client, video)
    for path in ("", "/content", "/events"):
        assert error_of(client.get(f"/v1/videos/{video}{path}"), 404)["code"] == "video_not_found"
    assert error_of(client.delete(f"/v1/videos/{video}"), 404)["code"] == "video_not_found"
    assert services.store.start(video, "e") is None
    delete(client, others[1])
    assert events(services) == [("video.failed", "cancelled")] * 3
    maintain(services)
    assert_nothing_is_left(services, video)


def test_a_running_video_is_gone_for_clients_at_once(client: TestClient, services: Services, running: str) -> None:
    delete(client, running)
    assert error_of(client.get(f"/v1/videos/{running}"), 404)["code"] == "video_not_found"
    assert error_of(client.post(f"/v1/videos/{running}/cancel"), 404)["code"] == "video_not_found"
    assert error_of(client.post(f"/v1/videos/{running}/remix", json={"prompt": PROMPT}), 404)
    for query in ({}, {"status": "in_progress"}, {"status": "failed"}, {"model": "demo"}):
        assert client.get("/v1/videos", params=query).json()["data"] == []
    maintain(services)
    assert services.store.check_lease(running, "e") is LeaseReply.CANCEL
    assert events(services) == []


@pytest.mark.parametrize("end", ["cancelled", "completed", "failed", "drained", "killed"])
def test_a_running_video_is_deleted_however_its_worker_ends(
    client: TestClient, services: Services, running: str, tmp_path: Path, end: str
) -> None:
    job = services.store.get(running)
    assert job is not None
    delete(client, running)
    put_files(services, running, tmp_path)
    match end:
        case "cancelled":
            assert services.store.finish_cancel(running, "e")
        case "completed":
            assert services.store.complete(running, "e", make_output(), {}, None)
        case "failed":
            assert services.store.fail(running, "e", FAILURE)
        case "drained":
            assert not services.store.requeue(job, "e", counts_as_attempt=False)
        case _:
            services.redis.delete(lease_key(running))
    maintain(services)
    maintain(services)
    assert services.store.get(running) is None
    assert events(services) == [("video.failed", "cancelled")]
    assert_nothing_is_left(services, running)


def test_the_end_by_an_older_worker_deletes_it_too(client: TestClient, services: Services, running: str) -> None:
    delete(client, running)
    services.redis.hset(job_key(running), mapping={"state": '"completed"', "completed_at": "1.0"})
    maintain(services)
    assert_nothing_is_left(services, running)


def test_files_are_deleted_if_the_api_dies_before_it_has_done_so(
    services: Services, client: TestClient, tmp_path: Path
) -> None:
    for is_ended in (False, True):
        video = create(client)["id"]
        if is_ended:
            start(services, video)
            services.store.complete(video, "e", make_output(), {}, None)
            maintain(services)  # which plans the next clean-up for its expiry
        put_files(services, video, tmp_path)
        services.store.delete(video)
        maintain(services)
        assert_nothing_is_left(services, video)


def test_its_idempotency_key_makes_a_new_video(client: TestClient, services: Services) -> None:
    headers, body = {"idempotency-key": "k"}, {"prompt": PROMPT}
    first = client.post("/v1/videos", json=body, headers=headers).json()["id"]
    start(services, first)
    delete(client, first)
    again = client.post("/v1/videos", json=body, headers=headers).json()
    assert again["id"] != first
    assert again["status"] == "queued"


def test_only_those_who_work_on_it_still_see_it(client: TestClient, services: Services, running: str) -> None:
    delete(client, running)
    job = services.store.view_any(running)
    assert job is not None
    assert job.delete_requested
    assert services.store.view(running) is None
    assert services.store.get_many_with_positions([running]) == [None]
