"""The file for liveness probes: touched while working, while idle and during outages, until the main loop hangs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from rq import Queue

from service.errors import ConfigurationError
from service.jobs.rq_queues import generate_queue
from service.process.heartbeat_file import HeartbeatFile
from service.settings import Settings
from service.wiring import Services, open_services
from tests.factories import make_generation, make_job
from tests.processes import started, wait_for
from tests.valkey import Valkey

PROGRAMS = {
    "worker": "tests.fake_worker",
    "webhooks": "service.webhook_dispatcher",
    "maintenance": "service.maintenance",
}
BEATS_S = 30.0  # on a busy machine; the file is touched every 5 seconds at the latest


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
def environment(server: Valkey, tmp_path: Path) -> dict[str, str]:
    return {"IVMIX_REDIS_URL": server.url, "IVMIX_DATA_DIR": str(tmp_path / "data")}


def beat(files: Iterable[Path], times: int = 1) -> None:
    """Wait until each file was touched this often. Old modification times make every touch visible."""
    for _ in range(times):
        for heartbeat_file in files:
            os.utime(heartbeat_file, (1, 1))
        for heartbeat_file in files:
            wait_for(lambda heartbeat_file=heartbeat_file: heartbeat_file.stat().st_mtime > 1, timeout_s=BEATS_S)


def test_files_are_touched_without_work_and_without_redis(
    environment: dict[str, str], server: Valkey, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in PROGRAMS]
    with ExitStack() as running:
        for heartbeat_file in files:
            own = environment | {"IVMIX_PULSE_FILE": str(heartbeat_file)}
            running.enter_context(started(own, PROGRAMS[heartbeat_file.name]))
        for heartbeat_file in files:
            wait_for(heartbeat_file.exists, timeout_s=90)
        server.kill()
        beat(files, 2)  # the first may have been on its way


def test_file_is_touched_while_a_worker_works_but_not_while_it_hangs(
    environment: dict[str, str], server: Valkey, tmp_path: Path
) -> None:
    heartbeat_file = tmp_path / "heartbeat_file"
    services = open_services(Settings(redis_url=server.url, data_dir=tmp_path / "data"))
    queue: Queue = generate_queue(services.redis, "demo")
    generation = make_generation(num_inference_steps=10_000)
    job = services.store.create(make_job(generation=generation), queue)
    with started(
        environment | {"FAKE_STEP_S": "0.5", "IVMIX_PULSE_FILE": str(heartbeat_file)}, "tests.fake_worker"
    ) as process:
        wait_for(lambda: _is_at_work(services, job.id), timeout_s=90)
        beat([heartbeat_file], 2)
        os.kill(process.pid, signal.SIGSTOP)
        os.utime(heartbeat_file, (1, 1))
        with pytest.raises(TimeoutError):
            wait_for(lambda: heartbeat_file.stat().st_mtime > 1, timeout_s=3)
        os.kill(process.pid, signal.SIGCONT)
        beat([heartbeat_file])
    services.close()


def _is_at_work(services: Services, job_id: str) -> bool:
    job = services.store.get(job_id)
    return job is not None and job.step > 0


def test_file_of_an_earlier_process_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "heartbeat_file"
    file.touch()
    heartbeat_file = HeartbeatFile(file)
    assert not file.exists()
    heartbeat_file.beat()
    assert file.exists()


def test_missing_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"IVMIX_PULSE_FILE=.*does not exist"):
        HeartbeatFile(tmp_path / "nowhere" / "heartbeat_file")
