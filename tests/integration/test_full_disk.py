"""A full disk: new jobs are refused in time, and the embedded server goes on by itself when there is space again."""

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from service.api.app import create_app
from service.process.embedded_valkey import EmbeddedValkey
from service.settings import Settings
from service.wiring import open_services
from tests.processes import ivmix_up, wait_for

MB = 2**20
VIDEO = {"prompt": "a red circle"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB; skips where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={24 * MB}", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot mount a file system here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Write a file that leaves `leave` free bytes."""
    file = folder / "filler"
    with file.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(b"\0" * 65536)
        except OSError:
            pass
    if leave:
        with file.open("r+b") as stream:
            stream.truncate(max(0, file.stat().st_size - leave))
    return file


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process or of those it starts may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def eventually(server: EmbeddedValkey, is_true: Callable[[], bool]) -> None:
    def attempt() -> bool | None:
        server.restart_if_exited()
        try:
            return is_true() or None
        except RedisError:
            return None

    wait_for(attempt, timeout_s=30)


def test_a_file_that_may_not_grow_costs_no_acknowledged_write(tmp_path: Path) -> None:
    """Runs without a separate file system: the append-only file reaches its limit, and the server exits."""
    server = EmbeddedValkey(tmp_path)
    written = 0
    try:
        with file_size_limit(MB), Redis.from_url(server.start(), retry=Retry(NoBackoff(), 0)) as redis:
            with suppress(RedisError):
                while True:
                    redis.set(f"key{written}", "x" * 20_000)
                    written += 1
            eventually(server, lambda: redis.ping())  # it is restarted, and can be read
            with pytest.raises(RedisError):
                redis.set("more", "x" * 20_000)
        eventually(server, lambda: redis.set("more", "x" * 20_000))
        assert redis.dbsize() == written + 1
        assert written > 10
    finally:
        server.stop()


def test_a_full_disk_ends_no_service_for_good(small_disk: Path) -> None:
    """Without the reserve, so that the queue does run out of space."""
    data = small_disk / "data"
    with ivmix_up(data, "--workers", "0", IVMIX_MIN_FREE_MB="0") as (_, url), httpx2.Client(base_url=url) as http:
        kept = [http.post("/v1/videos", json=VIDEO).json()["id"] for _ in range(3)]
        filler = fill(small_disk)
        refused = wait_for(
            lambda: next((r for r in (http.post("/v1/videos", json=VIDEO),) if r.status_code != 200), None)
        )
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "service_unavailable")
        time.sleep(1)  # some restarts on the full disk
        filler.unlink()
        wait_for(lambda: http.post("/v1/videos", json=VIDEO).status_code == 200 or None, timeout_s=20)
        assert [http.get(f"/v1/videos/{job}").status_code for job in kept] == [200] * 3


def test_new_jobs_are_refused_before_the_disk_is_full(small_disk: Path, settings: Settings) -> None:
    changed = settings.model_copy(update={"data_dir": small_disk / "data", "min_free_mb": 10})
    (small_disk / "data").mkdir()
    services = open_services(changed)
    with TestClient(create_app(services)) as http:
        job = http.post("/v1/videos", json=VIDEO)
        filler = fill(small_disk, leave=8 * MB)
        refused = http.post("/v1/videos", json=VIDEO)
        assert http.get(f"/v1/videos/{job.json()['id']}").status_code == 200
        filler.unlink()
        again = http.post("/v1/videos", json=VIDEO)
    services.close()
    assert (job.status_code, refused.status_code, again.status_code) == (200, 503, 200)
    assert refused.json()["error"]["code"] == "no_space"
    assert "disk space" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"storage": "file"}, 503),
        ({"storage": "s3", "s3_bucket": "videos"}, 200),  # nothing of a job is on this machine's disk
        ({"storage": "s3", "s3_bucket": "videos", "embedded_queue": True}, 503),
        ({"storage": "file", "min_free_mb": 0}, 200),
    ],
)
def test_only_a_disk_that_jobs_need_counts(changes: dict[str, object], status: int, settings: Settings) -> None:
    """A reserve that no disk has."""
    settings.data_dir.mkdir()
    services = open_services(Settings.model_validate({**settings.model_dump(), "min_free_mb": 10**9, **changes}))
    with TestClient(create_app(services)) as http:
        assert http.post("/v1/videos", json=VIDEO).status_code == status
    services.close()


def test_a_repeated_request_gets_its_video_even_then(settings: Settings) -> None:
    settings.data_dir.mkdir()
    headers = {"idempotency-key": "once"}
    services = open_services(settings)
    with TestClient(create_app(services)) as http:
        first = http.post("/v1/videos", json=VIDEO, headers=headers)
    full = open_services(settings.model_copy(update={"min_free_mb": 10**9}))
    with TestClient(create_app(full)) as http:
        again = http.post("/v1/videos", json=VIDEO, headers=headers)
    services.close()
    full.close()
    assert again.json()["id"] == first.json()["id"]
