"""The sign of life that liveness probes look at: it goes on through work, idleness and outages, and stops with the
thread that works."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rq import Queue

from service.errors import ConfigurationError
from service.pulse import Pulse
from service.queues import generate_queue
from service.settings import Settings
from service.wiring import Services, open_services
from tests.factories import make_generation, make_job
from tests.processes import started, wait_for
from tests.valkey import Valkey

PROGRAMS = {"worker": "tests.fake_worker", "webhooks": "service.courier", "maintenance": "service.maintenance"}
BEATS_S = 30.0  # on a busy machine; a pulse is every 5 seconds at the latest


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
def environment(server: Valkey, tmp_path: Path) -> dict[str, str]:
    return {
        "IVMIX_REDIS_URL": server.url,
        "IVMIX_DATA_DIR": str(tmp_path / "data"),
        "IVMIX_PULSE_FILE": str(tmp_path / "pulse"),
    }


@pytest.fixture
def pulse(tmp_path: Path) -> Path:
    return tmp_path / "pulse"


def beats(pulse: Path, times: int = 2) -> None:
    """Wait for so many; the file is made older first, so that every one is seen."""
    wait_for(pulse.exists, timeout_s=90)
    for _ in range(times):
        os.utime(pulse, (1, 1))
        wait_for(lambda: pulse.stat().st_mtime > 1, timeout_s=BEATS_S)


@pytest.mark.parametrize("program", PROGRAMS)
def test_pulse_goes_on_without_work_and_without_redis(
    program: str, environment: dict[str, str], pulse: Path, server: Valkey
) -> None:
    with started(environment, PROGRAMS[program]):
        beats(pulse)
        server.kill()
        beats(pulse)
        server.start()
        beats(pulse, 1)


def test_pulse_goes_on_while_a_worker_works_and_ends_when_it_hangs(
    environment: dict[str, str], pulse: Path, server: Valkey, tmp_path: Path
) -> None:
    services = open_services(Settings(redis_url=server.url, data_dir=tmp_path / "data"))
    queue: Queue = generate_queue(services.redis, "demo")
    generation = make_generation(num_inference_steps=10_000)
    job = services.store.create(make_job(generation=generation), queue)
    with started(environment | {"FAKE_STEP_S": "0.5"}, "tests.fake_worker") as process:
        wait_for(lambda: _is_at_work(services, job.id), timeout_s=90)
        beats(pulse)
        os.kill(process.pid, signal.SIGSTOP)
        os.utime(pulse, (1, 1))
        with pytest.raises(TimeoutError):
            wait_for(lambda: pulse.stat().st_mtime > 1, timeout_s=3)
        os.kill(process.pid, signal.SIGCONT)
        beats(pulse, 1)
    services.close()


def _is_at_work(services: Services, job_id: str) -> bool:
    job = services.store.get(job_id)
    return job is not None and job.step > 0


def test_pulse_of_an_earlier_process_is_no_sign_of_life(tmp_path: Path) -> None:
    file = tmp_path / "pulse"
    file.touch()
    pulse = Pulse(file)
    assert not file.exists()
    pulse.beat()
    assert file.exists()


def test_pulse_without_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="IVMIX_PULSE_FILE=.*there is no folder"):
        Pulse(tmp_path / "nowhere" / "pulse")
