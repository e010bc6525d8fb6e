"""GET /v1/usage, `ivmix usage` and quotas of GPU seconds. Every second of work counts once."""

from __future__ import annotations

import csv
import io
import json
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from rq import Queue

from service.api_keys import Scope
from service.errors import QuotaExceeded
from service.jobs.model import Job, JobError, JobState, Phase
from service.jobs.store import JobStore, QueueLimits
from service.jobs.usage import Usage, UsageStore
from service.settings import Settings
from service.wiring import Services
from tests.commands import ivmix_here
from tests.factories import PROMPT, create_job, make_job, make_output
from tests.processes import clean_environment
from tests.quick_app import quick_app
from worker.child.gpu_time import GpuTime

SAMPLING = Phase.SAMPLING
TIMINGS = {Phase.ENCODING: 0.5, Phase.SAMPLING: 4.0, Phase.DECODING: 0.25, Phase.UPLOADING: 9.0}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"auth": "keys"})


def today() -> date:
    return datetime.now(UTC).date()


def used(services: Services, owner: str | None = None) -> list[Usage]:
    """On the days around today, so that a test may run at midnight."""
    return UsageStore(services.redis).page(today() - timedelta(1), today() + timedelta(1), owner=owner)[0]


def total(services: Services, name: str) -> float:
    return sum(getattr(usage, name) for usage in used(services))


def test_a_resumed_job_counts_once(services: Services, store: JobStore, queue: Queue) -> None:
    """Two executions: the second repeats a step, and every write is repeated, as after a lost reply."""
    job = create_job(store, queue, owner="key_a")
    for execution, steps in (("e1", [(1, 1.0), (2, 2.0), (3, 3.0)]), ("e2", [(3, 0.0), (4, 1.0), (5, 2.5)])):
        store.start(job.id, execution)
        for step, seconds in steps:
            for _ in range(2):
                store.report_progress(job.id, execution, step, 5, SAMPLING, gpu_seconds=seconds)
        if execution == "e1":
            store.requeue(store.get(job.id) or job, "e1")
    for _ in range(2):
        assert store.complete(job.id, "e2", make_output(size_bytes=1000), TIMINGS, None)
    (usage,) = used(services)
    assert (usage.owner, usage.videos, usage.bytes) == ("key_a", 1, 1000)
    assert usage.gpu_seconds == pytest.approx(3.0 + 2.5 + 0.25)
    ended = store.get(job.id)
    assert ended is not None
    assert ended.gpu_ms == 5750
    store.delete(job.id)
    assert used(services) == [usage]


def test_a_report_that_was_lost_is_made_up_by_the_next(services: Services, store: JobStore, queue: Queue) -> None:
    job = create_job(store, queue)
    store.start(job.id, "e1")
    store.report_progress(job.id, "e1", 3, 5, SAMPLING, gpu_seconds=3.0)
    store.report_progress(job.id, "zombie", 4, 5, SAMPLING, gpu_seconds=90.0)
    store.fail(job.id, "e1", JobError(code="timeout", message="Too long."))
    (usage,) = used(services)
    assert (usage.failed, usage.videos, usage.gpu_seconds, usage.failed_gpu_seconds) == (1, 0, 3.0, 3.0)


def test_every_way_to_end_counts_once(services: Services, store: JobStore, queue: Queue) -> None:
    queued, running, deleted, damaged = (create_job(store, queue, owner="key_a") for _ in range(4))
    store.cancel(queued.id)
    store.cancel(queued.id)
    store.start(running.id, "e")
    store.report_progress(running.id, "e", 1, 5, SAMPLING, gpu_seconds=1.5)
    store.cancel(running.id)
    store.finish_cancel(running.id, "e")
    store.start(deleted.id, "e")
    store.delete(deleted.id)
    store.complete(deleted.id, "e", make_output(), TIMINGS, None)
    services.redis.hset(f"ivm:job:{damaged.id}", "gpu_ms", "nonsense")
    services.redis.hset(f"ivm:job:{damaged.id}", "generation", "nonsense")
    store.fail_damaged(damaged.id)
    (usage,) = used(services)
    assert (usage.videos, usage.failed, usage.cancelled, usage.bytes) == (0, 1, 3, 0)
    # The deleted one had been finished by a worker that reports no time, as those of version 0.1.
    assert usage.gpu_seconds == pytest.approx(1.5 + 4.75)


def test_gpu_time_leaves_out_what_is_repeated() -> None:
    job = make_job(step=3, gpu_ms=900)
    clock = GpuTime(job, lambda: 0.0)
    clock.note(Phase.ENCODING, 0)  # it waits for the storage
    clock.begin()
    for phase, step, is_counted in (
        (Phase.ENCODING, 0, False),
        (Phase.SAMPLING, 2, False),
        (Phase.SAMPLING, 3, False),
        (Phase.SAMPLING, 4, True),
        (Phase.DECODING, 20, False),
    ):
        before = clock.seconds
        time.sleep(0.002)
        clock.note(phase, step)
        assert (clock.seconds > before) is is_counted
    first = GpuTime(make_job(), lambda: 0.0)
    time.sleep(0.002)
    first.note(Phase.ENCODING, 0)
    assert first.seconds == 0
    first.begin()
    time.sleep(0.002)
    first.note(Phase.ENCODING, 0)
    assert first.seconds > 0


def test_gpu_time_leaves_out_the_decoding_of_another_clip() -> None:
    decoded_s = 0.0
    clock = GpuTime(make_job(), lambda: decoded_s)
    clock.begin()
    decoded_s = 30.0  # as if that had passed
    clock.note(SAMPLING, 0)
    assert clock.seconds == pytest.approx(-30.0, abs=10)


def complete(services: Services, owner: str, *, seconds: float = 2.0) -> Job:
    from service.jobs.rq_queues import generate_queue

    job = create_job(services.store, generate_queue(services.redis, "demo"), owner=owner)
    services.store.start(job.id, "e")
    services.redis.lrem("rq:queue:gpu-demo", 1, job.id)
    services.store.report_progress(job.id, "e", 20, 20, SAMPLING, gpu_seconds=seconds)
    services.store.complete(job.id, "e", make_output(), {}, None)
    return job


def on_day(services: Services, days_ago: int, owner: str, **counts: int) -> None:
    day = (today() - date(1970, 1, 1)).days - days_ago
    redis: Any = services.redis
    redis.hset(f"ivm:usage:{day}:{owner}", mapping=counts)
    redis.zadd(f"ivm:usage:owners:{day}", {owner: 0})


@pytest.fixture
def api(services: Services) -> Any:
    with TestClient(quick_app(services)) as client:
        yield client


def bearer(services: Services, *scopes: Scope, **limits: Any) -> tuple[str, dict[str, str]]:
    key, secret = services.keys.create("k", scopes=scopes or (Scope.READ, Scope.WRITE), **limits)
    return key.owner, {"authorization": f"Bearer {secret}"}


def test_a_key_sees_its_own_usage_and_an_admin_that_of_all(services: Services, api: TestClient) -> None:
    owner, own = bearer(services)
    _, admin = bearer(services, Scope.ADMIN)
    for name in (owner, "key_other"):
        complete(services, name)
        on_day(services, 3, name, videos=2, gpu_ms=1500)
    on_day(services, 40, owner, videos=9)
    page = api.get("/v1/usage", headers=own).json()
    assert [(row["owner"], row["videos"], row["gpu_seconds"]) for row in page["data"]] == [
        (owner, 2, 1.5),
        (owner, 1, 2.0),
    ]
    assert (page["has_more"], page["gpu_seconds_per_day"]) == (False, None)
    everything = api.get("/v1/usage", headers=admin).json()["data"]
    assert len(everything) == 4
    assert api.get("/v1/usage", headers=own, params={"owner": "key_other"}).status_code == 403
    chosen = api.get("/v1/usage", headers=admin, params={"owner": "key_other", "limit": 1}).json()
    assert ([row["owner"] for row in chosen["data"]], chosen["has_more"]) == (["key_other"], True)
    old = {"start_date": str(today() - timedelta(41)), "end_date": str(today() - timedelta(39))}
    assert [row["videos"] for row in api.get("/v1/usage", headers=own, params=old).json()["data"]] == [9]


def test_pages_and_csv_have_every_row_once(services: Services, api: TestClient) -> None:
    _, admin = bearer(services, Scope.ADMIN)
    for days_ago in (0, 1, 2):
        for number in range(3):
            on_day(services, days_ago, f"key_{number}", videos=number + 1, bytes=5, gpu_ms=100)
    rows, after = list[dict[str, str]](), {}
    for _ in range(5):
        got = api.get("/v1/usage", headers=admin, params={"format": "csv", "limit": 2} | after)
        rows += csv.DictReader(io.StringIO(got.text))
        after = {"after": got.headers["x-last-id"]}
    assert got.headers["x-has-more"] == "false"
    assert len({(row["date"], row["owner"]) for row in rows}) == len(rows) == 9
    assert rows[0] | {"date": ""} == {
        "date": "",
        "owner": "key_0",
        "videos": "1",
        "failed": "0",
        "cancelled": "0",
        "gpu_seconds": "0.1",
        "failed_gpu_seconds": "0.0",
        "bytes": "5",
    }


@pytest.mark.parametrize("day", ["0001-01-01", "9999-12-31"])
def test_days_without_usage_are_empty(day: str, services: Services, api: TestClient) -> None:
    """Also the first and the last one that there are."""
    for _, headers in (bearer(services), bearer(services, Scope.ADMIN)):
        got = api.get("/v1/usage", headers=headers, params={"start_date": day, "end_date": day})
        assert (got.status_code, got.json()["data"]) == (200, [])


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"start_date": "2026-02-30"}, "start_date"),
        ({"end_date": "yesterday"}, "end_date"),
        ({"start_date": "2026-11-02", "end_date": "2026-11-01"}, "start_date"),
        ({"start_date": "2024-01-01", "end_date": "2026-11-01"}, "start_date"),
        ({"after": "nonsense"}, "after"),
        ({"limit": "0"}, "limit"),
        ({"format": "xml"}, "format"),
        ({"from": "2026-11-01"}, "from"),
    ],
)
def test_wrong_parameters_are_named(params: dict[str, str], param: str, services: Services, api: TestClient) -> None:
    _, own = bearer(services)
    got = api.get("/v1/usage", headers=own, params=params)
    assert (got.status_code, got.json()["error"]["param"]) == (400, param)


def test_the_command_prints_tables_and_csv(services: Services, tmp_path: Path) -> None:
    owner, _ = bearer(services)
    complete(services, owner)
    environment = clean_environment() | {"IVMIX_REDIS_URL": services.redis_url, "IVMIX_DATA_DIR": str(tmp_path)}
    tomorrow = str(today() + timedelta(1))
    ran = ivmix_here("usage", "--csv", "--to", tomorrow, cwd=tmp_path, environment=environment)
    (row,) = csv.DictReader(io.StringIO(ran.stdout))
    assert (row["owner"], row["name"], row["videos"], row["gpu_seconds"]) == (owner, "k", "1", "2.0")
    ran = ivmix_here("usage", "--to", tomorrow, "--key", "absent", cwd=tmp_path, environment=environment)
    assert (ran.returncode, owner in ran.stdout) == (0, False)
    ran = ivmix_here("usage", "--from", "monday", cwd=tmp_path, environment=environment)
    assert (ran.returncode, "monday" in ran.stderr) == (1, True)


def test_a_used_quota_refuses_videos_until_midnight(services: Services, api: TestClient) -> None:
    owner, headers = bearer(services, gpu_seconds_per_day=5)
    body = {"prompt": PROMPT, "seed": 1}
    first = api.post("/v1/videos", json=body, headers=headers | {"idempotency-key": "a"})
    assert first.status_code == 200
    services.store.cancel(first.json()["id"])
    complete(services, owner, seconds=6.0)
    refused = api.post("/v1/videos", json=body, headers=headers)
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "quota_exceeded")
    assert (0 < int(refused.headers["retry-after"]) <= 86_400, refused.headers["x-should-retry"]) == (True, "false")
    assert "5 seconds per day" in error["message"]
    assert services.store.list(limit=9, owner=owner)[0][0].state is JobState.COMPLETED
    replay = api.post("/v1/videos", json=body, headers=headers | {"idempotency-key": "a"})
    assert (replay.status_code, replay.json()["id"]) == (200, first.json()["id"])
    _, others = bearer(services)
    assert api.post("/v1/videos", json=body, headers=others).status_code == 200


def test_what_waits_and_runs_counts_towards_the_quota(services: Services, store: JobStore, queue: Queue) -> None:
    limits = QueueLimits(per_queue=99, per_owner=99, gpu_seconds_per_day=10)

    def new(ms: int, owner: str = "key_a") -> Job:
        return store.create(make_job(owner=owner, expected_gpu_ms=ms), queue, limits=limits)

    running, _waiting, _other = new(4000), new(4000), new(9000, "key_b")
    store.start(running.id, "e")
    services.redis.lrem(queue.key, 1, running.id)
    with pytest.raises(QuotaExceeded, match="0 are used, and videos that wait or run are expected to take 8"):
        new(4000)
    store.report_progress(running.id, "e", 20, 20, SAMPLING, gpu_seconds=1.0)
    store.complete(running.id, "e", make_output(), {}, None)
    assert new(4000).state is JobState.QUEUED
    with pytest.raises(QuotaExceeded):
        new(4000)
    assert json.loads(services.redis.hget(f"ivm:job:{running.id}", "gpu_ms") or "0") == 1000
