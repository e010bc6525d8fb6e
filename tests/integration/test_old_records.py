"""Records that version 0.1.0 wrote into Redis and into the storage can be read and used."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from service.api_keys import Scope, digest_of
from service.errors import IdempotencyKeyReused
from service.jobs.job_list import JobFilter
from service.jobs.keys import job_key, lease_key
from service.jobs.model import Job, JobState, Phase
from service.jobs.outbox import job_of
from service.jobs.queue_and_waiting_time import queue_stats
from service.jobs.record_reader import Idempotency
from service.jobs.rq_queues import GENERATE, TrustedJob, generate_queue
from service.jobs.store import LeaseReply
from service.jobs.usage import UsageStore
from service.maintenance.backup import Backup
from service.maintenance.backup_file import BackupWriter
from service.maintenance.index_builder import IndexBuilder
from service.maintenance.lost_job_reaper import LostJobReaper
from service.maintenance.recovery import Recovery, RecoveryStatus
from service.maintenance.restore import Restore
from service.maintenance.retention import Retention
from service.storage import sha256_of
from service.storage.manifest import manifests
from service.webhook_dispatcher.fan_out import FanOut
from service.webhooks.retry_policy import NextState, State
from service.webhooks.sender import Outcome
from service.wire.video import Renderer
from service.wiring import Services
from tests.factories import make_job, make_output
from tests.quick_app import quick_app

RECORDS = json.loads((Path(__file__).parents[1] / "data" / "records_0_1_0.json").read_text())
NAMES: dict[str, str] = RECORDS["names"]
OWNER = NAMES["key"]


def raw(text: str) -> bytes:
    return text.encode("latin-1")


def raw_pairs(fields: dict[str, str]) -> dict[bytes, bytes]:
    return {raw(name): raw(value) for name, value in fields.items()}


@pytest.fixture
def services(services: Services) -> Services:
    """A server and a storage as 0.1.0 left them."""
    redis = services.redis
    write: dict[str, Callable[[str, Any], object]] = {
        "string": lambda key, value: redis.set(key, raw(value)),
        "hash": lambda key, value: redis.hset(key, mapping=raw_pairs(value)),
        "list": lambda key, value: redis.rpush(key, *map(raw, value)),
        "set": lambda key, value: redis.sadd(key, *map(raw, value)),
        "zset": lambda key, value: redis.zadd(key, {raw(member): score for member, score in value}),
        "stream": lambda key, value: [redis.xadd(key, raw_pairs(fields), id=entry) for entry, fields in value],
    }
    for key, stored in RECORDS["keys"].items():
        write[stored["type"]](key, stored["value"])
    return services


@pytest.fixture
def stored_files(services: Services, tmp_path: Path) -> None:
    for key, content in RECORDS["storage"].items():
        file = tmp_path / "file"
        file.write_bytes(raw(content))
        services.storage.put(file, key=key, media_type="application/octet-stream", sha256=sha256_of(file))


def job(services: Services, name: str) -> Job:
    found = services.store.get(NAMES[name])
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "state", "attempt", "step", "phase"),
    [
        ("queued", JobState.QUEUED, 0, 0, None),
        ("queued_low", JobState.QUEUED, 0, 0, None),
        ("requeued", JobState.QUEUED, 1, 3, None),
        ("running", JobState.RUNNING, 1, 5, Phase.SAMPLING),
        ("running_cancelled", JobState.RUNNING, 1, 0, None),
        ("completed", JobState.COMPLETED, 1, 20, None),
        ("failed", JobState.FAILED, 1, 0, None),
        ("cancelled", JobState.CANCELLED, 0, 0, None),
    ],
)
def test_jobs_in_every_state_are_read(
    services: Services, name: str, state: JobState, attempt: int, step: int, phase: Phase | None
) -> None:
    found = job(services, name)
    assert (found.state, found.attempt, found.step, found.phase) == (state, attempt, step, phase)
    assert (found.owner, found.user, found.metadata) == (OWNER, "u1", {"name": name})
    assert found.generation.prompt.startswith("a red circle moving left")


def test_every_stored_field_of_a_job_is_still_known(services: Services) -> None:
    for name in ("queued", "running", "completed", "failed", "cancelled"):
        stored = {
            field.decode(): json.loads(value) for field, value in services.redis.hgetall(job_key(NAMES[name])).items()
        }
        assert stored.items() <= job(services, name).model_dump(mode="json").items()


def test_results_are_read(services: Services) -> None:
    completed, failed = job(services, "completed"), job(services, "failed")
    assert completed.output is not None
    assert completed.output.key == f"videos/{completed.id}/execution-1/video.mp4"
    assert completed.timings == {"encoding": 0.25, "sampling": 1.5, "decoding": 0.25}
    assert (completed.peak_memory_mb, completed.callback and completed.callback.events) == (512.0, ("video.completed",))
    assert failed.error is not None
    assert (failed.error.code, failed.generation.sampler.name) == ("out_of_memory", "zigzag")
    assert failed.start_by == pytest.approx(failed.created_at + 604_800)
    assert queue_stats(services.redis, services.store, "demo").seconds_per_video == 2.0


def test_lists_and_positions_are_read(services: Services) -> None:
    newest_first = ["in_outbox", "queued", "queued_low", "requeued", "running_cancelled", "running"]
    page, has_more = services.store.list(limit=6, owner=OWNER)
    assert ([found.metadata["name"] for found in page], has_more) == (newest_first, True)
    lists = services.store.lists
    low = JobFilter(owner=OWNER, metadata={"name": "queued_low"}, states=frozenset({JobState.QUEUED}))
    other = JobFilter(owner="another", metadata=low.metadata)
    for build in (lambda: None, IndexBuilder(services.redis, services.store).run_once):
        build()
        assert lists.page(low, limit=5) == ([job(services, "queued_low")], False)
        assert lists.page(other, limit=5) == ([], False)
    order = ("requeued", "queued", "queued_low")
    positions = services.store.get_many_with_positions([NAMES[name] for name in order])
    assert positions == [(job(services, name), place) for place, name in enumerate(order)]


def test_new_jobs_sort_behind_old_ones_and_run_before_low_ones(services: Services) -> None:
    queue = generate_queue(services.redis, "demo")
    new = services.store.create(make_job(owner=OWNER), queue)
    assert new.id > max(NAMES[name] for name in ("queued", "in_outbox"))
    assert queue.job_ids == [NAMES["requeued"], NAMES["queued"], new.id, NAMES["queued_low"]]


def test_idempotency_keys_are_known(services: Services) -> None:
    first = Idempotency("key-1", "fingerprint-1")
    queue = generate_queue(services.redis, "demo")
    assert services.store.create(make_job(owner=OWNER), queue, idempotency=first) == job(services, "queued")
    with pytest.raises(IdempotencyKeyReused):
        services.store.find_by_idempotency_key(OWNER, Idempotency("key-1", "other"))


@pytest.mark.parametrize("name", ["queued", "requeued"])
def test_a_worker_runs_a_queued_job(services: Services, name: str) -> None:
    entry = TrustedJob.fetch(NAMES[name], connection=services.redis, serializer="json")
    assert (entry.func_name, entry.args) == (GENERATE, [NAMES[name]])
    before = job(services, name)
    running = services.store.start(NAMES[name], "new")
    assert running is not None
    assert (running.attempt, running.generation) == (before.attempt + 1, before.generation)
    assert services.store.report_progress(running.id, "new", 7, 20, Phase.SAMPLING) is LeaseReply.CONTINUE
    assert services.store.complete(running.id, "new", make_output(), {}, None)
    assert job(services, name).state is JobState.COMPLETED


def test_a_worker_of_0_1_0_keeps_its_job_and_sees_its_cancellation(services: Services) -> None:
    assert services.store.renew_lease(NAMES["running"], "execution-3") is LeaseReply.CONTINUE
    assert services.store.renew_lease(NAMES["running_cancelled"], "execution-4") is LeaseReply.CANCEL
    assert services.store.complete(NAMES["running"], "execution-3", make_output(), {}, 1.0)
    assert services.store.finish_cancel(NAMES["running_cancelled"], "execution-4")
    assert job(services, "running_cancelled").state is JobState.CANCELLED


def test_the_maintenance_takes_over(services: Services) -> None:
    services.redis.delete(lease_key(NAMES["running"]), lease_key(NAMES["running_cancelled"]))
    retention = Retention(services.redis, services.store, services.storage, retention_s=1, tidy_after_s=0)
    reaper = LostJobReaper(services.redis, services.store, retention, grace_s=0, max_attempts=3)
    reaper.run_once()
    assert job(services, "running").state is JobState.QUEUED
    assert job(services, "running_cancelled").state is JobState.CANCELLED
    retention.run_once()
    assert services.store.get(NAMES["failed"]) is None


@pytest.mark.parametrize("name", ["completed", "failed", "cancelled"])
def test_ended_jobs_are_deleted(services: Services, name: str) -> None:
    assert services.store.delete(NAMES[name]) is not None
    assert not services.redis.exists(job_key(NAMES[name]))


@pytest.mark.parametrize("name", ["queued", "requeued"])
def test_queued_jobs_are_cancelled(services: Services, name: str) -> None:
    cancelled = services.store.cancel(NAMES[name])
    assert cancelled is not None
    assert cancelled.state is JobState.CANCELLED


def test_api_keys_are_read(services: Services) -> None:
    key = services.keys.find(digest_of(NAMES["secret"]))
    assert key is not None
    assert (key.id, key.name, key.requests_per_minute, key.max_waiting) == (OWNER, "reader", 30, 5)
    assert key.scopes == {Scope.READ, Scope.WRITE, Scope.WEBHOOKS}
    assert services.keys.find(digest_of(NAMES["revoked_secret"])) is None
    (active, used_at), (revoked, never) = services.keys.list()
    assert (active, revoked.id, never) == (key, NAMES["revoked_key"], None)
    assert used_at is not None
    assert revoked.revoked_at is not None


def test_endpoints_and_secrets_are_read(services: Services) -> None:
    endpoints = services.webhooks.endpoints
    endpoint, disabled = (endpoints.get(OWNER, NAMES[name]) for name in ("endpoint", "disabled_endpoint"))
    assert (endpoint.name, endpoint.url, len(endpoint.secrets)) == ("main again", "https://hooks.example.com/ivmix", 2)
    assert (endpoint.is_enabled, disabled.is_enabled) == (True, False)
    assert endpoints.subscribed(OWNER, "video.failed") == [endpoint]
    stored = json.loads(RECORDS["keys"][f"ivm:webhook:secret:{OWNER}"]["value"])
    assert [secret.model_dump() for secret in endpoints.callback_secrets(OWNER)] == stored


@pytest.mark.parametrize(
    ("name", "state", "statuses"),
    [
        ("delivered", State.DELIVERED, [503, 200]),
        ("failed_delivery", State.FAILED, [None, 410]),
        ("retried_delivery", State.PENDING, [500]),
        ("pending_delivery", State.PENDING, []),
    ],
)
def test_deliveries_are_read_and_redelivered(
    services: Services, name: str, state: State, statuses: list[int | None]
) -> None:
    store = services.webhooks.deliveries
    delivery = store.get(OWNER, NAMES[name])
    assert (delivery.state, delivery.attempts) == (state, len(statuses))
    assert [attempt.status_code for attempt in delivery.log] == statuses
    assert delivery in store.list(OWNER)[0]
    assert delivery in store.list(OWNER, video_id=delivery.video_id)[0]
    again = store.redeliver(OWNER, delivery.id)
    assert (again.state, again.started_with, again.log) == (State.PENDING, len(statuses), delivery.log)


def test_due_deliveries_are_made(services: Services) -> None:
    store = services.webhooks.deliveries
    assert set(store.claim(10)) == {(NAMES["retried_delivery"], 1, OWNER), (NAMES["pending_delivery"], 0, OWNER)}
    delivery = store.get(OWNER, NAMES["pending_delivery"])
    assert delivery.url == "https://callback.example.com/done"
    assert store.start_attempt(delivery, delivery.url, timeout_s=1, per_host_limit=1)
    assert store.finish_attempt(delivery, delivery.url, Outcome(200, None, 0.1), NextState(State.DELIVERED))
    assert store.get(OWNER, delivery.id).state is State.DELIVERED


def test_the_outbox_is_read_and_becomes_deliveries(services: Services) -> None:
    ((_, record),) = services.webhooks.outbox.read(10)
    assert job_of(record) == job(services, "in_outbox")
    FanOut(services.webhooks, Renderer(services.settings, services.storage)).run_once()
    (delivery,), _ = services.webhooks.deliveries.list(OWNER, video_id=NAMES["in_outbox"])
    assert (delivery.event_type, delivery.endpoint_id) == ("video.failed", NAMES["endpoint"])


def test_what_ends_now_is_counted_as_usage(services: Services) -> None:
    assert services.store.complete(NAMES["running"], "execution-3", make_output(size_bytes=3), {"sampling": 1.5}, None)
    services.store.cancel(NAMES["queued"])
    today = datetime.now(UTC).date()
    usage, _ = UsageStore(services.redis).page(today - timedelta(1), today + timedelta(1), owner=OWNER)
    assert sum(day.videos for day in usage) == sum(day.cancelled for day in usage) == 1
    assert sum(day.gpu_seconds for day in usage) == 1.5


@pytest.mark.usefixtures("stored_files")
def test_the_api_shows_lists_serves_and_deletes_its_videos(services: Services) -> None:
    services = dataclasses.replace(services, settings=services.settings.model_copy(update={"auth": "keys"}))
    with TestClient(quick_app(services), headers={"authorization": f"Bearer {NAMES['secret']}"}) as client:
        listed = [video["id"] for video in client.get("/v1/videos?limit=50").json()["data"]]
        assert sorted(listed) == sorted(name for name in NAMES.values() if name.startswith("video_"))
        for video_id in listed:
            assert client.get(f"/v1/videos/{video_id}").status_code == 200
        stored = RECORDS["storage"][f"videos/{NAMES['completed']}/execution-1/video.mp4"]
        assert client.get(f"/v1/videos/{NAMES['completed']}/content").content == raw(stored)
        for video_id in listed:
            assert client.delete(f"/v1/videos/{video_id}").status_code == 200
        assert client.get("/v1/videos").json()["data"] == []
        endpoints = {endpoint["id"] for endpoint in client.get("/v1/webhook_endpoints").json()["data"]}
        assert endpoints == {NAMES["endpoint"], NAMES["disabled_endpoint"]}


def test_a_backup_of_it_is_restored(services: Services, tmp_path: Path) -> None:
    file, before = tmp_path / "backup.gz", {name: services.store.get(NAMES[name]) for name in ("completed", "queued")}
    with BackupWriter(file, made_by="test") as writer:
        Backup(services.redis).write(writer)
    services.redis.flushall()
    Restore(services.redis).run(file)
    assert {name: services.store.get(NAMES[name]) for name in before} == before
    queued = [NAMES["requeued"], NAMES["queued"], NAMES["queued_low"]]
    assert generate_queue(services.redis, "demo").job_ids == queued
    assert services.keys.find(digest_of(NAMES["secret"])) is not None


@pytest.mark.usefixtures("stored_files")
def test_a_record_is_rebuilt_from_its_manifest(services: Services) -> None:
    before = job(services, "completed")
    (manifest,) = manifests(services.storage, before.id)
    assert manifest.output == before.output
    services.redis.flushall()
    assert dict(Recovery(services.store, services.storage, 3600.0).run()) == {before.id: RecoveryStatus.REBUILT}
    differing = {"completed_at", "expires_at", "gpu_ms"}  # 0.1.0 did not count GPU time; the manifest has the timings
    assert (before.gpu_ms, job(services, "completed").gpu_ms) == (0, 2000)
    assert job(services, "completed").model_dump(exclude=differing) == before.model_dump(exclude=differing)


def test_the_fixture_is_of_redis_as_it_was(services: Services) -> None:
    redis: Redis = services.redis
    assert sorted(key.decode() for key in redis.keys("*")) == sorted(RECORDS["keys"])
