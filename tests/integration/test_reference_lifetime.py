"""The file of a reference: stored once, kept as long as its video, and nothing left where none was created."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from redis.exceptions import ConnectionError as RedisConnectionError

from service.jobs.model import JobError
from service.jobs.store import JobStore
from service.maintenance.retention import Retention
from service.settings import Settings
from service.storage import object_keys, read
from service.storage.reference_files import NOTED, SWEPT_AFTER_S, ReferenceFiles
from service.wiring import Services, open_services
from tests.conftest import serve
from tests.factories import PROMPT, finish
from tests.reference_calls import error_of, left_over, made, send, stored
from tests.reference_files import picture


def test_a_repeated_request_stores_nothing(client: TestClient, services: Services) -> None:
    first = made(send(client, key="once"))
    assert made(send(client, key="once"))["id"] == first["id"]
    assert stored(services) == [object_keys.reference(first["id"])]
    for changed in ({"data": picture(size=(32, 32))}, {"strength": 0.5}, {"reference_use": "start"}):
        assert error_of(send(client, key="once", **changed), 422)["code"] == "idempotency_key_reused"
    assert (len(stored(services)), left_over(services), services.redis.zcard(NOTED)) == (1, [], 0)


def test_a_request_that_loses_the_race_for_its_key_stores_nothing(
    client: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(send(client, key="once"))
    monkeypatch.setattr(JobStore, "find_by_idempotency_key", lambda *_: None)
    assert made(send(client, key="once"))["id"] == first["id"]
    assert stored(services) == [object_keys.reference(first["id"])]


def test_a_full_queue_leaves_nothing(settings: Settings) -> None:
    full = open_services(settings.model_copy(update={"max_waiting": 1}))
    with serve(full) as url, httpx2.Client(base_url=url) as http:
        made(send(http))
        assert error_of(send(http), 429)["code"] == "queue_full"
    assert (len(stored(full)), left_over(full), full.redis.zcard(NOTED)) == (1, [], 0)
    full.close()


def test_after_a_lost_answer_of_redis_maintenance_decides(
    client: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = JobStore.create_many

    def lose(store: JobStore, *arguments: Any, **options: Any) -> Any:
        create(store, *arguments, **options)
        raise RedisConnectionError

    monkeypatch.setattr(JobStore, "create_many", lose)
    assert send(client).status_code == 503
    monkeypatch.setattr(JobStore, "create_many", lambda *_, **__: (_ for _ in ()).throw(RedisConnectionError()))
    assert send(client).status_code == 503
    kept, lost = sorted(stored(services))
    later = ReferenceFiles(services.redis, services.storage, now=lambda: time.time() + SWEPT_AFTER_S + 1)
    assert (services.references.sweep(), len(stored(services))) == (0, 2), "too early"
    assert (later.sweep(), stored(services)) == (1, [kept])
    assert services.store.exists(kept.removeprefix("references/"))
    assert not services.store.exists(lost.removeprefix("references/"))
    assert (later.sweep(), services.redis.zcard(NOTED)) == (0, 0)


@pytest.mark.parametrize("end", ["failed", "cancelled", "completed"])
def test_it_stays_until_the_record_goes(
    client: TestClient, services: Services, finished: Callable[[str, bytes], None], end: str
) -> None:
    job_id = made(send(client))["id"]
    key = object_keys.reference(job_id)
    if end == "failed":
        assert services.store.fail(job_id, None, JobError(code="timeout", message="Too slow."))
    elif end == "cancelled":
        services.store.cancel(job_id)
    else:
        finished(job_id, b"an MP4")
    clock = [time.time()]
    retention = Retention(
        services.redis, services.store, services.storage, retention_s=900, tidy_after_s=90, now=lambda: clock[0]
    )
    retention.take_over(job_id)
    clock[0] += 100
    retention.run_once()
    assert stored(services) == [key], "run_again needs it"
    again = made(client.post(f"/v1/videos/{job_id}/run_again"))
    assert read(services.storage, object_keys.reference(again["id"])) == read(services.storage, key)
    clock[0] += 8 * 86400
    retention.run_once()
    assert key not in stored(services)
    assert stored(services) == [object_keys.reference(again["id"])]


def test_remix_and_run_again_keep_the_reference(client: TestClient, services: Services) -> None:
    source = made(send(client, strength=0.5))
    path = f"/v1/videos/{source['id']}"
    remixed = made(client.post(f"{path}/remix", json={"prompt": PROMPT.replace("red", "blue")}))
    changed = made(client.post(f"{path}/run_again", json={"strength": 0.25, "seed": -1}))
    assert remixed["input_reference"] == source["input_reference"]
    assert changed["input_reference"] == source["input_reference"] | {"strength": 0.25}
    other = made(send(client, picture(size=(32, 32)), path=f"{path}/remix"))
    assert (other["input_reference"]["width"], other["input_reference"]["strength"]) == (32, 0.8)
    assert "use iv-mixed" in error_of(client.post(f"{path}/run_again", json={"sampler": "official"}))["message"]
    services.storage.delete(object_keys.reference(source["id"]))
    error = error_of(client.post(f"{path}/run_again"))
    assert (error["param"], "no longer stored; send the picture" in error["message"]) == ("input_reference", True)
    assert (len(stored(services)), left_over(services)) == (3, [])


def test_sync_keeps_no_temporary_file_while_it_waits(services: Services, tmp_path: Path) -> None:
    seen: list[list[Path]] = []
    watched = open_services(services.settings)
    view = JobStore.view

    def looking(store: JobStore, job_id: str) -> Any:
        seen.append(left_over(services))
        finish(services, job_id, b"an MP4", scratch=tmp_path) if len(seen) == 1 else None
        return view(store, job_id)

    watched.store.view = looking.__get__(watched.store)  # type: ignore[method-assign]
    with serve(watched) as url, httpx2.Client(base_url=url, timeout=30) as http:
        answer = send(http, path="/v1/videos/sync")
    assert (answer.status_code, answer.content) == (200, b"an MP4")
    assert seen[0] == []
    watched.close()
