"""From frames to a stored video, and what can happen between. The storage is Swift behind a faulty proxy."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from service.errors import StorageError
from service.jobs.model import Job, JobState
from service.settings import Settings
from service.storage import StorageRetry, VideoStorage, read, sha256_of
from service.storage.manifest import Manifest, manifests
from service.wiring import open_storage
from tests.factories import make_generation, make_job
from tests.faulty_proxy import FaultyProxy
from worker.child import mp4
from worker.child.upload import Uploader
from worker.scratch import Scratch

FRAMES = np.random.default_rng(1).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)


class Stop(Exception):
    pass


@pytest.fixture
def proxy(swift: Settings) -> Iterator[FaultyProxy]:
    assert swift.s3_endpoint_url is not None
    with FaultyProxy(swift.s3_endpoint_url) as running:
        yield running


@pytest.fixture
def storage(swift: Settings) -> VideoStorage:
    """The same bucket without the proxy."""
    return open_storage(swift)


@pytest.fixture
def uploader(swift: Settings, proxy: FaultyProxy, tmp_path: Path) -> Uploader:
    behind = Settings.model_validate({**swift.model_dump(), "s3_endpoint_url": proxy.url, "s3_timeout_s": 5})
    return Uploader(open_storage(behind), Scratch(tmp_path / "scratch"), StorageRetry(budget_s=60))


@pytest.fixture
def job() -> Job:
    return make_job(state=JobState.RUNNING, execution_id="e1", metadata={"team": "red"}, user="u1")


def deliver(uploader: Uploader, job: Job, execution_id: str = "e1", *, stop: bool = False) -> Manifest:
    def on_wait() -> None:
        if stop:
            raise Stop

    return uploader.upload(job, execution_id, FRAMES, timings={"sampling": 2.5}, peak_memory_mb=12.0, on_wait=on_wait)


def find(uploader: Uploader, job: Job, execution_id: str = "e2") -> Manifest | None:
    return uploader.find(job, execution_id, on_wait=lambda: None)


def test_the_files_are_stored_and_the_manifest_says_all_that_the_record_will(
    uploader: Uploader, storage: VideoStorage, job: Job, tmp_path: Path
) -> None:
    manifest = deliver(uploader, job)
    prefix = f"videos/{job.id}/e1/"
    assert [stored.key.removeprefix(prefix) for stored in storage.list("videos/")] == [
        "manifest.json",
        "spritesheet.jpg",
        "thumbnail.webp",
        "video.mp4",
    ]
    (tmp_path / "a.mp4").write_bytes(read(storage, manifest.output.key))
    assert mp4.read_mp4(tmp_path / "a.mp4").shape == FRAMES.shape
    assert manifest.output.sha256 == sha256_of(tmp_path / "a.mp4")
    (stored,) = manifests(storage, job.id)
    assert stored == manifest
    assert (stored.job.state, stored.job.timings, stored.job.peak_memory_mb) == (
        JobState.COMPLETED,
        {"sampling": 2.5},
        12.0,
    )
    assert (stored.job.generation, stored.job.metadata, stored.job.user) == (job.generation, {"team": "red"}, "u1")


def test_the_manifest_comes_last(uploader: Uploader, proxy: FaultyProxy, job: Job) -> None:
    deliver(uploader, job)
    puts = [line.rpartition("/")[2] for line in proxy.seen if line.startswith("PUT")]
    assert puts == ["video.mp4", "thumbnail.webp", "spritesheet.jpg", "manifest.json"]


def test_a_fresh_job_has_nothing_to_find(uploader: Uploader, job: Job) -> None:
    assert find(uploader, job) is None


def test_what_was_stored_is_found_and_not_sent_again(uploader: Uploader, proxy: FaultyProxy, job: Job) -> None:
    """The worker was killed, or Redis was unreachable, between the upload and the commit."""
    first = deliver(uploader, job)
    proxy.seen.clear()
    again = find(uploader, job.model_copy(update={"execution_id": "e2"}))
    assert again == first
    # the scratch of the first was still there: same files, same keys; on another machine there is none
    uploader.scratch.discard(job.id, "e2")
    proxy.seen.clear()
    assert find(uploader, job, "e3") == first
    assert not any(line.startswith("PUT") for line in proxy.seen)


def test_what_another_request_made_is_not_taken(uploader: Uploader, job: Job) -> None:
    deliver(uploader, job)
    other = job.model_copy(update={"generation": make_generation(seed=8)})
    assert find(uploader, other) is None
    assert find(uploader, other, "e3") is None


def test_what_is_stored_in_part_or_changed_is_not_taken(
    uploader: Uploader, storage: VideoStorage, job: Job, tmp_path: Path
) -> None:
    manifest = deliver(uploader, job)
    uploader.scratch.discard(job.id, "e1")
    (tmp_path / "other").write_bytes(b"x" * manifest.output.size_bytes)
    key = manifest.output.key
    storage.put(tmp_path / "other", key=key, media_type="video/mp4", sha256=sha256_of(tmp_path / "other"))
    assert find(uploader, job) is None
    storage.delete(key)
    assert find(uploader, job) is None


def test_an_outage_is_waited_out(uploader: Uploader, storage: VideoStorage, proxy: FaultyProxy, job: Job) -> None:
    proxy.faults.extend(["503", "drop", "503", "cut", "flip", "503", "503", "drop"])
    assert deliver(uploader, job).is_complete(storage)
    assert not proxy.faults


def test_a_worker_that_is_stopped_in_an_outage_leaves_the_files_for_the_next(
    uploader: Uploader, storage: VideoStorage, proxy: FaultyProxy, job: Job
) -> None:
    with pytest.raises(Stop):
        deliver(uploader, job, stop=True)
    assert list(storage.list("")) == []
    manifest = find(uploader, job, "e2")
    assert manifest is not None
    assert manifest.is_complete(storage)
    assert manifest.job.timings == {"sampling": 2.5}  # of the one who drew it
    assert manifest.output.key.startswith(f"videos/{job.id}/e1/")  # where the first would have put it


def test_files_on_scratch_that_were_harmed_are_not_stored(
    uploader: Uploader, storage: VideoStorage, job: Job, tmp_path: Path
) -> None:
    with pytest.raises(Stop):
        deliver(uploader, job, stop=True)
    video = tmp_path / "scratch" / job.id / "e1" / "video.mp4"
    video.write_bytes(video.read_bytes()[:-1] + b"x")
    assert find(uploader, job) is None
    assert list(storage.list("")) == []
    assert deliver(uploader, job, "e2").is_complete(storage)


def test_a_storage_that_stays_away_ends_in_an_error_and_the_files_stay(
    uploader: Uploader, proxy: FaultyProxy, job: Job, tmp_path: Path
) -> None:
    short = Uploader(uploader.storage, uploader.scratch, StorageRetry(budget_s=1))
    proxy.faults.extend(["503"] * 1000)
    with pytest.raises(StorageError):
        deliver(short, job)
    assert (tmp_path / "scratch" / job.id / "e1" / "video.mp4").exists()


def test_a_storage_that_cannot_be_asked_costs_a_drawing_not_the_job(
    uploader: Uploader, proxy: FaultyProxy, job: Job
) -> None:
    proxy.method = "GET"
    proxy.faults.extend(["503"] * 10)
    assert find(uploader, job) is None


def test_a_full_disk_leaves_no_half_files(
    uploader: Uploader, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mp4, "write_spritesheet", no_space)
    with pytest.raises(OSError, match="No space"):
        deliver(uploader, job)
    assert list((tmp_path / "scratch").iterdir()) == []
