"""After a loss of Redis every completed video in the storage gets its record back. On files and on Swift."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.api.app import create_app
from service.jobs.model import Job, JobState, Phase
from service.jobs.rq_queues import generate_queue
from service.maintenance.recovery import Recovery, RecoveryStatus
from service.process.embedded_valkey import EmbeddedValkey
from service.settings import Settings
from service.storage import StorageRetry, sha256_of
from service.storage.manifest import Manifest, delete_files
from service.wiring import Services, open_services
from tests.factories import make_job
from tests.integration.test_cli import ivmix
from worker.child.upload import Uploader
from worker.scratch import Scratch

FRAMES = np.zeros((2, 32, 32, 3), dtype=np.uint8)
RETENTION_S = 3600.0


@pytest.fixture(params=["settings", "swift"], ids=["file", "swift"])
def services(request: pytest.FixtureRequest) -> Iterator[Services]:
    opened = open_services(request.getfixturevalue(request.param))
    yield opened
    opened.close()


@pytest.fixture
def complete(services: Services, tmp_path: Path) -> Callable[..., Job]:
    """complete(..) -> the record of a job that was completed as a worker does it."""
    uploader = Uploader(services.storage, Scratch(tmp_path / "scratch"), StorageRetry(30))

    def run(execution_id: str = "e1", **fields: object) -> Job:
        created = services.store.create(make_job(**fields), generate_queue(services.redis, "demo"))
        job = services.store.start(created.id, execution_id)
        assert job is not None
        services.store.report_progress(job.id, execution_id, job.total_steps, job.total_steps, Phase.UPLOADING)
        manifest = uploader.upload(
            job, execution_id, FRAMES, timings={"sampling": 1.0}, peak_memory_mb=5.0, on_wait=lambda: None
        )
        assert services.store.complete(job.id, execution_id, manifest.output, {"sampling": 1.0}, 5.0)
        return found(services, job.id)

    return run


def found(services: Services, job_id: str) -> Job:
    job = services.store.get(job_id)
    assert job is not None
    return job


def recover(services: Services, *, dry_run: bool = False) -> dict[str, RecoveryStatus]:
    return dict(Recovery(services.store, services.storage, RETENTION_S, dry_run).run())


def test_every_record_is_rebuilt_as_it_was(services: Services, complete: Callable[..., Job]) -> None:
    before = [complete(metadata={"n": str(n)}, user="u") for n in range(3)]
    services.redis.flushall()
    assert recover(services) == {job.id: RecoveryStatus.REBUILT for job in before}
    for job in before:
        again = found(services, job.id)
        assert again.completed_at == pytest.approx(job.completed_at, abs=60)
        assert again.expires_at == again.completed_at + RETENTION_S
        differing = {"completed_at", "expires_at"}
        assert again.model_dump(exclude=differing) == job.model_dump(exclude=differing)
    jobs, _ = services.store.list(order="asc")
    assert [job.id for job in jobs] == [job.id for job in before]


def test_the_api_serves_rebuilt_videos(services: Services, complete: Callable[..., Job]) -> None:
    job = complete()
    services.redis.flushall()
    recover(services)
    with TestClient(create_app(services)) as client:
        assert client.get(f"/v1/videos/{job.id}").json()["status"] == "completed"
        answer = client.get(f"/v1/videos/{job.id}/content", follow_redirects=False)
    assert answer.status_code in (200, 307)


def test_existing_records_are_not_changed(services: Services, complete: Callable[..., Job]) -> None:
    first, second = complete(), complete()
    services.store.delete(first.id)
    before = found(services, second.id)
    assert recover(services) == {first.id: RecoveryStatus.REBUILT, second.id: RecoveryStatus.KNOWN}
    assert recover(services) == {first.id: RecoveryStatus.KNOWN, second.id: RecoveryStatus.KNOWN}
    assert found(services, second.id) == before


def test_a_dry_run_writes_nothing(services: Services, complete: Callable[..., Job]) -> None:
    job = complete()
    services.redis.flushall()
    assert recover(services, dry_run=True) == {job.id: RecoveryStatus.REBUILT}
    assert services.redis.dbsize() == 0


@pytest.mark.parametrize("harm", ["missing", "changed", "unreadable", "foreign"])
def test_an_incomplete_video_gets_no_record(
    services: Services, complete: Callable[..., Job], tmp_path: Path, harm: str
) -> None:
    job, other = complete(), complete()
    assert job.output is not None
    manifest = f"videos/{job.id}/e1/manifest.json"
    replacement = tmp_path / "replacement"
    if harm == "missing":
        services.storage.delete(job.output.key)
    else:
        key = job.output.key if harm == "changed" else manifest
        stolen = b"".join(services.storage.open(f"videos/{other.id}/e1/manifest.json"))
        replacement.write_bytes({"changed": b"x", "unreadable": b"{", "foreign": stolen}[harm])
        services.storage.put(replacement, key=key, media_type="video/mp4", sha256=sha256_of(replacement))
    services.redis.flushall()
    assert recover(services) == {job.id: RecoveryStatus.INCOMPLETE, other.id: RecoveryStatus.REBUILT}
    assert services.store.get(job.id) is None


def test_the_first_of_two_finished_executions_counts(
    services: Services, complete: Callable[..., Job], tmp_path: Path
) -> None:
    job = complete()
    Uploader(services.storage, Scratch(tmp_path / "second"), StorageRetry(30)).upload(
        job.model_copy(update={"execution_id": "e0"}),
        "e0",
        FRAMES,
        timings={},
        peak_memory_mb=1,
        on_wait=lambda: None,
    )
    services.redis.flushall()
    assert recover(services) == {job.id: RecoveryStatus.REBUILT}
    assert found(services, job.id).output == job.output


def test_a_deleted_video_is_not_rebuilt(services: Services, complete: Callable[..., Job]) -> None:
    job = complete()
    with TestClient(create_app(services)) as client:
        assert client.delete(f"/v1/videos/{job.id}").status_code == 200
    assert list(services.storage.list("videos/")) == []
    assert recover(services) == {}


def test_the_manifest_is_deleted_first(services: Services, complete: Callable[..., Job]) -> None:
    """A partly deleted video must not be rebuilt."""
    job, order = complete(), []

    class Watched:
        list = staticmethod(services.storage.list)

        def delete(self, key: str) -> None:
            order.append(key.rpartition("/")[2])
            services.storage.delete(key)

    delete_files(Watched(), job.id)  # type: ignore[arg-type]
    assert order[0] == "manifest.json"
    assert sorted(order[1:]) == ["spritesheet.jpg", "thumbnail.webp", "video.mp4", f"{job.id}.safetensors"]


def test_a_manifest_of_a_later_version_can_be_read(services: Services, complete: Callable[..., Job]) -> None:
    job = complete()
    data = json.loads(b"".join(services.storage.open(f"videos/{job.id}/e1/manifest.json")))
    data["new"] = data["job"]["new"] = 1
    assert Manifest.model_validate(data).job.id == job.id


def test_the_command_reports_each_video(settings: Settings, tmp_path: Path) -> None:
    """The embedded server has lost its data folder; a new one is filled again."""
    data = tmp_path / "data"
    with EmbeddedValkey(data) as url:
        services = open_services(Settings(redis_url=url, data_dir=data))
        created = services.store.create(make_job(), generate_queue(services.redis, "demo"))
        job = services.store.start(created.id, "e1")
        assert job is not None
        Uploader(services.storage, Scratch(tmp_path / "scratch"), StorageRetry(30)).upload(
            job, "e1", FRAMES, timings={}, peak_memory_mb=1, on_wait=lambda: None
        )
        services.redis.flushall()
        services.close()
    runs = [ivmix("recover", *options, cwd=tmp_path, IVMIX_DATA_DIR=str(data)) for options in (["--dry-run"], [], [])]
    assert [run.returncode for run in runs] == [0, 0, 0], runs
    assert runs[0].stdout.splitlines() == [
        f"rebuilt {job.id}",
        "1 videos in the storage: 1 rebuilt, 0 known, 0 incomplete (dry run)",
    ]
    assert runs[1].stdout.splitlines()[0] == f"rebuilt {job.id}"
    assert runs[2].stdout.splitlines()[0] == f"known {job.id}"
    with EmbeddedValkey(data) as url:
        services = open_services(Settings(redis_url=url, data_dir=data))
        assert found(services, job.id).state is JobState.COMPLETED
        services.close()
