"""Jobs with a reference, LoRAs, several videos, a solver and windows after a loss of Redis. On files and on Swift."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.jobs.model import Job
from service.maintenance.recovery import LOST_AFTER_S, Recovery, RecoveryStatus
from service.maintenance.retention import Retention
from service.settings import MODELS_FILE, Settings
from service.storage import StorageRetry, object_keys, read, sha256_of
from service.storage.reference_files import NOTED, SWEPT_AFTER_S, ReferenceFiles
from service.wiring import Services, open_services
from tests.integration.test_cli import here
from tests.quick_app import quick_app
from tests.reference_calls import error_of, made, send, stored
from worker.child.upload import Uploader
from worker.scratch import Scratch

RETENTION_S = 3600.0
FRAMES = np.zeros((2, 32, 32, 3), dtype=np.uint8)
EVERYTHING = {
    "strength": 0.5,
    "loras": "ink:0.5",
    "num_videos": 2,
    "num_frames": 12,
    "sampler": '{"name": "ddim", "solver": "dpmpp-2m"}',
}
OWN_SETTINGS = ("input_reference", "loras", "sampler", "num_frames", "seed")


@pytest.fixture(params=["settings", "swift"], ids=["file", "swift"])
def services(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Services]:
    """The demo model with longer clips and a LoRA; no weights are loaded here."""
    settings: Settings = request.getfixturevalue(request.param)
    (tmp_path / "ink.safetensors").touch()
    text = MODELS_FILE.read_text().replace("../../demo/weights", str(MODELS_FILE.parents[2] / "demo" / "weights"))
    frames = "num_frames = { default = 8, min = 8, max = 8 }"
    longer = "num_frames = { default = 8, min = 8, max = 16 }\ncontext_windows = { length = 8 }"
    assert text.count(frames) == 1
    lora = f'[sources.own]\nfolder = "{tmp_path}"\n[[models.demo.selectable_loras]]\nname = "ink"\n'
    file = tmp_path / "models.toml"
    file.write_text(f'{text.replace(frames, longer)}\n{lora}file = "own/ink.safetensors"\n')
    opened = open_services(settings.model_copy(update={"models_file": file}))
    yield opened
    opened.close()


@pytest.fixture
def client(services: Services) -> Iterator[TestClient]:
    with TestClient(quick_app(services)) as http:
        yield http


def complete(services: Services, job_id: str, folder: Path) -> Job:
    """As a worker does it."""
    job = services.store.start(job_id, "e1")
    assert job is not None
    uploader = Uploader(services.storage, Scratch(folder / "scratch"), StorageRetry(30))
    stored = uploader.upload(job, "e1", FRAMES, timings={}, peak_memory_mb=1, on_wait=lambda: None)
    assert services.store.complete(job_id, "e1", stored.output, {}, 1)
    return found(services, job_id)


def found(services: Services, job_id: str) -> Job:
    job = services.store.get(job_id)
    assert job is not None
    return job


def recover(services: Services) -> dict[str, RecoveryStatus]:
    return dict(Recovery(services.store, services.storage, RETENTION_S).run())


def sweep_later(services: Services) -> int:
    later = time.time() + SWEPT_AFTER_S + 1
    return ReferenceFiles(services.redis, services.storage, now=lambda: later).sweep()


def test_all_that_was_asked_for_is_rebuilt_and_the_reference_lives_as_long_as_the_record(
    client: TestClient, services: Services, tmp_path: Path
) -> None:
    ids = made(send(client, **EVERYTHING))["video_ids"]
    shown = {video_id: client.get(f"/v1/videos/{video_id}").json() for video_id in ids}
    before = [complete(services, video_id, tmp_path) for video_id in ids]
    generation = before[1].generation
    assert generation.reference is not None
    assert generation.context_windows is not None
    assert (generation.loras[0].scale, generation.sampler.solver) == (0.5, "dpmpp-2m")
    files = {key: read(services.storage, key) for key in stored(services)}
    assert set(files) == {object_keys.reference(video_id) for video_id in ids}

    services.redis.flushall()
    services.redis.zadd(NOTED, {ids[0]: 0})  # of a backup from between the two writes
    assert sweep_later(services) == 0, "it deletes nothing of a video that can be recovered"
    assert recover(services) == dict.fromkeys(ids, RecoveryStatus.REBUILT)
    services.redis.zadd(NOTED, {ids[1]: 0})
    assert sweep_later(services) == 0
    assert {key: read(services.storage, key) for key in stored(services)} == files
    for job in before:
        assert found(services, job.id).generation == job.generation
        again = client.get(f"/v1/videos/{job.id}").json()
        assert {name: again[name] for name in OWN_SETTINGS} == {name: shown[job.id][name] for name in OWN_SETTINGS}
    copy = made(client.post(f"/v1/videos/{ids[0]}/run_again"))
    assert copy["input_reference"] == shown[ids[0]]["input_reference"]
    assert read(services.storage, object_keys.reference(copy["id"])) == files[object_keys.reference(ids[0])]

    assert client.delete(f"/v1/videos/{ids[0]}").status_code == 200
    assert set(stored(services)) == {object_keys.reference(each) for each in (ids[1], copy["id"])}
    expire(services, ids[1])
    assert stored(services) == [object_keys.reference(copy["id"])]
    error_of(client.get(f"/v1/videos/{ids[1]}"), 404)


def expire(services: Services, job_id: str) -> None:
    later = time.time() + 2 * RETENTION_S
    settings: dict[str, Any] = {"retention_s": RETENTION_S, "tidy_after_s": 1, "now": lambda: later}
    retention = Retention(services.redis, services.store, services.storage, **settings)
    retention.take_over(job_id)
    later += 2
    retention.run_once()


def test_what_lost_jobs_leave_is_named_and_nothing_else(
    client: TestClient, services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = made(send(client))["id"]
    complete(services, done, tmp_path)
    lost = made(send(client))["id"]
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_bytes(b"latents")
    for job_id in (done, lost):
        key = object_keys.checkpoint(job_id)
        services.storage.put(checkpoint, key=key, media_type="application/octet-stream", sha256=sha256_of(checkpoint))
    services.redis.flushall()
    assert recover(services) == {done: RecoveryStatus.REBUILT}
    waiting = made(send(client))["id"]
    recovery = Recovery(services.store, services.storage, RETENTION_S)
    assert list(recovery.lost_files()) == [], "too early: its record may come"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + LOST_AFTER_S + 60)
    assert list(recovery.lost_files()) == [object_keys.reference(lost), object_keys.checkpoint(lost)]
    assert set(stored(services)) == {object_keys.reference(job_id) for job_id in (done, lost, waiting)}


def test_the_command_deletes_them_only_if_asked(tmp_path: Path) -> None:
    data = tmp_path / "data"
    left = data / "storage" / "references" / f"video_{'0' * 32}"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"a picture")
    os.utime(left, (time.time() - 2 * LOST_AFTER_S,) * 2)
    said = here("recover", cwd=tmp_path, IVMIX_DATA_DIR=str(data)).stdout
    assert f"lost references/{left.name}\n1 files of jobs that are lost; `ivmix recover --delete-lost`" in said
    assert left.exists()
    said = here("recover", "--delete-lost", cwd=tmp_path, IVMIX_DATA_DIR=str(data)).stdout
    assert f"deleted references/{left.name}" in said
    assert not left.exists()
