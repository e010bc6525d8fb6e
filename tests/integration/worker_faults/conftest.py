"""Worker parents and children, maintenance and a Valkey, all of them real processes.

The engine only sleeps (tests/fake_worker.py), so that tests spend their time on faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rq import Queue

from service.jobs.model import Job, Phase
from service.settings import Settings
from service.wiring import Services, open_services
from tests.factories import make_generation
from tests.job_waits import now, reaches_step
from tests.processes import started
from tests.valkey import Valkey

FAKE = "tests.fake_worker"
LEASE_S, BEAT_S = 4.0, 0.4  # far apart, because the machine may be busy


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
def services(server: Valkey, tmp_path: Path) -> Iterator[Services]:
    opened = open_services(Settings(redis_url=server.url, data_dir=tmp_path / "data", lease_s=LEASE_S, beat_s=BEAT_S))
    yield opened
    opened.close()


@pytest.fixture
def environment(server: Valkey, tmp_path: Path) -> dict[str, str]:
    return {
        "IVMIX_REDIS_URL": server.url,
        "IVMIX_DATA_DIR": str(tmp_path / "data"),
        "IVMIX_LEASE_S": str(LEASE_S),
        "IVMIX_BEAT_S": str(BEAT_S),
        "IVMIX_LOOK_S": "0.1",
        "IVMIX_CHECKPOINT_S": "0.05",
        "IVMIX_STALL_TIMEOUT_S": "3",
        "FAKE_GATE": str(tmp_path / "gate"),
    }


@pytest.fixture
def maintenance(environment: dict[str, str]) -> Iterator[None]:
    with started(environment, "service.maintenance"):
        yield


@pytest.fixture
def submit(services: Services, queue: Queue) -> Callable[..., str]:
    """submit(faults, steps=...) -> job id"""

    def send(faults: str = "", steps: int = 20) -> str:
        generation = make_generation(prompt=f"a clip {faults}", num_inference_steps=steps)
        return services.store.create(Job.new(generation), queue).id

    return send


@pytest.fixture
def two(services: Services, environment: dict[str, str], submit: Callable[..., str]) -> Callable[[], tuple[str, str]]:
    """two() -> ids of two jobs, when the first has all its steps and is held there, and the second has begun."""

    def begin() -> tuple[str, str]:
        first, second = submit("late@decode"), submit(steps=200)
        reaches_step(services, second, 5)
        assert now(services, first).phase is Phase.DECODING
        return first, second

    return begin
