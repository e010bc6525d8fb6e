"""A video whose worker was killed or stopped at any step is byte for byte the undisturbed one.

One trial runs always; `RESUME_SEED=1 pytest -m slow tests/integration/test_resume.py` runs twenty more.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.jobs.model import Generation, Job, JobState
from service.jobs.rq_queues import generate_queue
from service.settings import Settings
from service.wiring import Services, open_services
from tests.factories import make_generation
from tests.processes import child_of, started, wait_for, worker

STEPS = 6
WAIT_S = 240.0


@pytest.fixture
def services(valkey: str, tmp_path: Path) -> Iterator[Services]:
    opened = open_services(Settings(redis_url=valkey, data_dir=tmp_path, lease_s=4, beat_s=0.4))
    yield opened
    opened.close()


@pytest.fixture
def environment(services: Services) -> dict[str, str]:
    return {
        "IVMIX_REDIS_URL": str(services.settings.redis_url),
        "IVMIX_DATA_DIR": str(services.settings.data_dir),
        "IVMIX_LEASE_S": "4",
        "IVMIX_BEAT_S": "0.4",
        "IVMIX_LOOK_S": "0.1",
        "IVMIX_CHECKPOINT_S": "0.01",
        "OMP_NUM_THREADS": "1",
    }


def submit(services: Services, generation: Generation) -> str:
    return services.store.create(Job.new(generation), generate_queue(services.redis, "demo")).id


def step_of(services: Services, job_id: str) -> int:
    job = services.store.get(job_id)
    assert job is not None
    return job.step


def attempts(services: Services, job_id: str) -> int:
    job = services.store.get(job_id)
    assert job is not None
    return job.attempt


def digest(services: Services, job_id: str) -> str:
    def there() -> str | None:
        job = services.store.get(job_id)
        assert job is not None
        assert job.error is None
        return job.output.sha256 if job.state is JobState.COMPLETED and job.output else None

    return wait_for(there, timeout_s=WAIT_S, hint=f"for {job_id}")


def trial(services: Services, environment: dict[str, str], chance: random.Random, fault: str) -> None:
    """Kill or stop a worker at a random step, let another one complete the job, and compare with an undisturbed run."""
    generation = make_generation(num_inference_steps=STEPS, seed=chance.randrange(2**32))
    at = chance.randrange(1, STEPS // 2)
    disturbed, undisturbed = submit(services, generation), submit(services, generation)
    with worker(environment) as first:
        wait_for(lambda: step_of(services, disturbed) >= at or None, timeout_s=WAIT_S)
        match fault:
            case "kill the child":
                os.kill(child_of(first.pid), signal.SIGKILL)
                assert digest(services, disturbed) == digest(services, undisturbed)
                return
            case "kill the parent":
                first.kill()
            case "kill the child, then stop":
                os.kill(child_of(first.pid), signal.SIGKILL)
                wait_for(lambda: attempts(services, disturbed) == 2 or None, timeout_s=WAIT_S)
                at = step_of(services, disturbed)
                wait_for(lambda: step_of(services, disturbed) > at or None, timeout_s=WAIT_S)
                first.terminate()
                assert first.wait(60) == 0
            case _:
                first.terminate()
                assert first.wait(60) == 0
    with started(environment, "service.maintenance"), worker(environment):
        assert digest(services, disturbed) == digest(services, undisturbed)


@pytest.mark.timeout(900)
def test_resumed_video_is_the_undisturbed_one(
    services: Services, environment: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    trial(services, environment, random.Random(0), "kill the child, then stop")
    assert capfd.readouterr().err.count("resumed after step") == 2


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("number", range(20))
def test_resumed_video_is_the_undisturbed_one_wherever_it_was_disturbed(
    services: Services, environment: dict[str, str], number: int
) -> None:
    chance = random.Random(os.environ.get("RESUME_SEED", "1") + f".{number}")
    trial(services, environment, chance, ["kill the child", "kill the parent", "stop"][number % 3])
