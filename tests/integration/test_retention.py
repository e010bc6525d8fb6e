"""Ended jobs: leftover files are deleted soon, record and files when the job expires."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from service.errors import StorageError
from service.jobs.keys import ENDED, job_key
from service.jobs.model import Job, JobError, JobState
from service.jobs.rq_queues import generate_queue
from service.maintenance.retention import RETRY_S, Retention
from service.storage import object_keys, sha256_of
from service.wiring import Services
from tests.factories import finish, make_job

DAY = 86400.0
TIDY_S = 90.0


class Now:
    ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def retention(services: Services, now: Now) -> Retention:
    return Retention(
        services.redis, services.store, services.storage, retention_s=7 * DAY, tidy_after_s=TIDY_S, now=now
    )


@pytest.fixture
def job(services: Services) -> Job:
    return services.store.create(make_job(), generate_queue(services.redis, "demo"))


def put(services: Services, key: str, scratch: Path) -> str:
    file = scratch / "file"
    file.write_bytes(b"something")
    services.storage.put(file, key=key, media_type="video/mp4", sha256=sha256_of(file))
    return key


def stored(services: Services) -> list[str]:
    return [stored.key for prefix in ("videos/", "checkpoints/") for stored in services.storage.list(prefix)]


def test_leftovers_of_a_completed_job_are_deleted_and_its_files_stay(
    services: Services, retention: Retention, now: Now, job: Job, tmp_path: Path
) -> None:
    finish(services, job.id, b"video", scratch=tmp_path)
    good = stored(services)
    put(services, f"{object_keys.execution(job.id, 'zombie')}video.mp4", tmp_path)
    put(services, object_keys.checkpoint(job.id), tmp_path)
    retention.take_over(job.id)
    retention.run_once()
    assert len(stored(services)) == len(good) + 2, "its workers get a while"
    now.ahead = TIDY_S + 1
    retention.run_once()
    assert stored(services) == good
    assert services.store.get(job.id) is not None


def test_expired_job_is_deleted_with_all_its_files(
    services: Services, retention: Retention, now: Now, job: Job, tmp_path: Path
) -> None:
    finish(services, job.id, b"video", scratch=tmp_path)
    retention.take_over(job.id)
    for ahead in (TIDY_S + 1, 7 * DAY - 60):
        now.ahead = ahead
        retention.run_once()
        assert services.store.get(job.id) is not None
        assert stored(services) != []
    now.ahead = 7 * DAY + 1
    retention.run_once()
    assert services.store.get(job.id) is None
    assert stored(services) == []
    assert services.redis.zcard(ENDED) == 0


def test_failed_job_expires_too(services: Services, retention: Retention, now: Now, job: Job) -> None:
    services.store.fail(job.id, None, JobError(code="timeout", message="Too slow."))
    retention.take_over(job.id)
    now.ahead = 7 * DAY - 60
    retention.run_once()
    failed = services.store.get(job.id)
    assert failed is not None
    assert failed.state is JobState.FAILED
    now.ahead = 7 * DAY + 1
    retention.run_once()
    assert services.store.get(job.id) is None


def test_a_failing_storage_is_retried_and_no_record_promises_the_video_meanwhile(
    services: Services, retention: Retention, now: Now, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is deleted first, so that no partly deleted video is shown while the storage fails."""
    finish(services, job.id, b"video", scratch=tmp_path)
    retention.take_over(job.id)
    now.ahead = 7 * DAY + 1

    def fails(key: str) -> None:
        raise StorageError("down")

    with monkeypatch.context() as broken:
        broken.setattr(services.storage, "delete", fails)
        retention.run_once()
        assert services.store.get(job.id) is None
        assert stored(services) != []
    now.ahead += RETRY_S + 1
    retention.run_once()
    assert stored(services) == []
    assert services.redis.zcard(ENDED) == 0


def test_files_of_a_job_that_the_client_deleted_are_deleted(
    services: Services, retention: Retention, now: Now, job: Job, tmp_path: Path
) -> None:
    finish(services, job.id, b"video", scratch=tmp_path)
    services.store.delete(job.id)
    retention.take_over(job.id)
    now.ahead = TIDY_S + 1
    retention.run_once()
    assert stored(services) == []


def test_videos_whose_records_redis_lost_stay(
    services: Services, retention: Retention, tmp_path: Path, now: Now
) -> None:
    """`ivmix recover` rebuilds their records."""
    key = put(services, f"{object_keys.execution('video_lost', 'e1')}video.mp4", tmp_path)
    now.ahead = 100 * DAY
    retention.run_once()
    assert stored(services) == [key]


def test_damaged_record_and_its_files_are_deleted_when_they_expire(
    services: Services, retention: Retention, now: Now, job: Job, tmp_path: Path
) -> None:
    finish(services, job.id, b"video", scratch=tmp_path)
    services.redis.hset(job_key(job.id), "generation", "garbage")
    retention.take_over(job.id)
    now.ahead = TIDY_S + 1
    retention.run_once()
    assert services.redis.exists(job_key(job.id))
    assert stored(services) != []
    now.ahead = 8 * DAY
    retention.run_once()
    assert stored(services) == []
    assert not services.redis.exists(job_key(job.id))
    assert services.redis.zcard(ENDED) == 0
