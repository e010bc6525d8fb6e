"""Two ivmix in one bucket, or on one Redis, do not see, sweep or recover each other's videos."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from redis import Redis

from service.jobs.model import Job
from service.jobs.rq_queues import generate_queue
from service.maintenance.recovery import Recovery, RecoveryStatus
from service.settings import Settings
from service.storage import StorageRetry, VideoStorage, object_keys, sha256_of
from service.storage.manifest import delete_all_files
from service.wiring import Services, check_storage, open_services
from tests.conftest import open_s3
from tests.factories import make_job
from tests.quick_app import quick_app
from worker.child.upload import Uploader
from worker.scratch import Scratch

FRAMES = np.zeros((2, 32, 32, 3), dtype=np.uint8)

PREFIXES = ("", "team-a", "team-a/second")  # without a prefix; the last is below another one's


def change(settings: Settings, **fields: object) -> Settings:
    return Settings.model_validate({**settings.model_dump(), **fields})


# Short tests use moto, one of them Swift as well.
MORE = [pytest.param("swift", marks=pytest.mark.slow), pytest.param("seaweed", marks=pytest.mark.slow)]
ON_EVERY_SERVER = pytest.mark.parametrize("shared", ["s3", *MORE], indirect=True)


@pytest.fixture
def shared(request: pytest.FixtureRequest) -> Settings:
    """Settings with a bucket that all of them use."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def deployments(shared: Settings, valkey: str) -> Iterator[list[Services]]:
    """One ivmix per prefix, each with a database of its own on the same Redis."""
    opened: list[Services] = []
    for number, prefix in enumerate(PREFIXES):
        settings = change(shared, s3_prefix=prefix, redis_url=f"{valkey[:-1]}{number}")
        opened.append(open_services(settings))
        redis: Any = opened[-1].redis
        redis.flushdb()
    yield opened
    for services in opened:
        services.close()


def make(services: Services, folder: Path) -> Job:
    """A video completed as a worker does it, with everything that an ivmix stores for one."""
    created = services.store.create(make_job(), generate_queue(services.redis, "demo"))
    job = services.store.start(created.id, "e1")
    assert job is not None
    file = folder / "picture.png"
    file.write_bytes(b"picture")
    for key in (object_keys.checkpoint(job.id), object_keys.reference(job.id)):
        services.storage.put(file, key=key, media_type="image/png", sha256=sha256_of(file))
    uploader = Uploader(services.storage, Scratch(folder / "scratch"), StorageRetry(30))
    made = uploader.upload(job, "e1", FRAMES, timings={"sampling": 1.0}, peak_memory_mb=5.0, on_wait=lambda: None)
    assert services.store.complete(job.id, "e1", made.output, {"sampling": 1.0}, 5.0)
    return job


def keys_in(settings: Settings) -> list[str]:
    with closing(open_s3(settings)) as admin:
        return [item["Key"] for item in admin.list_objects_v2(Bucket=settings.s3_bucket).get("Contents", ())]


def listed(storage: VideoStorage) -> list[str]:
    return [stored.key for folder in object_keys.FOLDERS for stored in storage.list(folder)]


@ON_EVERY_SERVER
def test_no_deployment_sees_the_others(deployments: list[Services], shared: Settings, tmp_path: Path) -> None:
    jobs = [make(services, tmp_path) for services in deployments]
    for services, job in zip(deployments, jobs, strict=True):
        others = {other.id for other in jobs} - {job.id}
        assert {found.id for found in services.store.list()[0]} == {job.id}
        found = listed(services.storage)
        assert len(found) == len(set(found)) >= 4
        assert all(job.id in key and not others & set(key.split("/")) for key in found)
        assert {key for key in keys_in(shared) if job.id in key} == {services.settings.s3_prefix + key for key in found}


@ON_EVERY_SERVER
def test_recovery_rebuilds_only_the_own_videos(deployments: list[Services], tmp_path: Path) -> None:
    jobs = [make(services, tmp_path) for services in deployments]
    for services, job in zip(deployments, jobs, strict=True):
        redis: Any = services.redis
        redis.flushdb()
        recovery = Recovery(services.store, services.storage, services.settings.retention_seconds)
        assert list(recovery.run()) == [(job.id, RecoveryStatus.REBUILT)]


@ON_EVERY_SERVER
def test_deleting_and_cleaning_spare_the_others(deployments: list[Services], shared: Settings, tmp_path: Path) -> None:
    """Even of the same video id, as after a copied Redis; and uploads in parts that another one has under way."""
    jobs = [make(services, tmp_path) for services in deployments]
    with closing(open_s3(shared)) as admin:
        for services in deployments:
            key = f"{services.settings.s3_prefix}videos/video_1/e/video.mp4"
            admin.create_multipart_upload(Bucket=shared.s3_bucket, Key=key)
        admin.create_multipart_upload(Bucket=shared.s3_bucket, Key="backups/of-another-team.tar")
        for services in deployments:
            assert services.storage.clean(older_than_s=-5) == 1
        left = admin.list_multipart_uploads(Bucket=shared.s3_bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == ["backups/of-another-team.tar"]
    before = keys_in(shared)
    for job in jobs[1:]:
        delete_all_files(deployments[0].storage, job.id)
    assert keys_in(shared) == before
    delete_all_files(deployments[1].storage, jobs[1].id)
    assert {key for key in before if jobs[1].id in key} == set(before) - set(keys_in(shared))


@ON_EVERY_SERVER
def test_the_api_and_its_addresses_use_the_prefix(deployments: list[Services], tmp_path: Path) -> None:
    services = deployments[1]
    job = make(services, tmp_path)
    with TestClient(quick_app(services)) as http:
        answer = http.get(f"/v1/videos/{job.id}/content", follow_redirects=False)
    location = answer.headers["location"]
    assert f"/team-a/videos/{job.id}/" in location
    assert httpx2.get(location, trust_env=False).status_code == 200
    assert services.store.get(job.id).output.key.startswith("videos/")  # type: ignore[union-attr]  # it can move


@pytest.mark.parametrize("shared", ["s3", "swift", MORE[1]], indirect=True)
def test_the_check_needs_only_the_prefix(shared: Settings) -> None:
    """Keys of a user who may only use it, as in the policy of docs/stores.md."""
    with closing(open_services(change(shared, s3_prefix="team-a"))) as services:
        check_storage(services.storage)
    assert keys_in(shared) == []


def test_databases_of_one_redis(valkey: str, tmp_path: Path) -> None:
    """The only separation that Redis offers: keys have no prefix."""
    queues: list[list[str]] = []
    for number in (0, 1):
        with closing(open_services(Settings(redis_url=f"{valkey[:-1]}{number}", data_dir=tmp_path))) as services:
            redis: Any = services.redis
            redis.flushdb()
            queue = generate_queue(services.redis, "demo")
            services.store.create(make_job(), queue)
            queues.append(queue.job_ids)
            assert [job.id for job in services.store.list()[0]] == queue.job_ids
    assert len({*queues[0], *queues[1]}) == 2
    with Redis.from_url(f"{valkey[:-1]}0") as redis:
        assert redis.llen("rq:queue:gpu-demo") == 1
