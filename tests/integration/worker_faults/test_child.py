"""The promises while a child breaks, hangs or is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from service.jobs.model import JobState
from service.storage import object_keys
from service.wiring import Services
from tests.integration.worker_faults.conftest import FAKE
from tests.job_waits import completed, reaches, reaches_step
from tests.processes import child_of, wait_for, worker


def test_killed_child_costs_an_attempt_and_its_job_resumes(
    services: Services, environment: dict[str, str], submit: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    job_id = submit("late@15", steps=20)
    with worker(environment, FAKE) as process:
        reaches_step(services, job_id, 15)
        wait_for(lambda: services.storage.size(object_keys.checkpoint(job_id)))
        Path(environment["FAKE_GATE"]).touch()
        os.kill(child_of(process.pid), signal.SIGKILL)
        job = completed(services, job_id)
        wait_for(
            lambda: services.storage.size(object_keys.checkpoint(job_id)) is None, hint="for its state to be removed"
        )
        assert process.poll() is None, "the parent lives on"
    starts = [line for line in capfd.readouterr().err.splitlines() if line.startswith("from step")]
    assert job.attempt == 2
    assert starts[0] == "from step 0"
    assert int(starts[1].rpartition(" ")[2]) > 0


def test_job_that_kills_its_worker_fails_after_three_attempts_and_the_next_one_runs(
    services: Services, environment: dict[str, str], submit: Callable[..., str]
) -> None:
    killer, next_one = submit("die@3"), submit()
    with worker(environment, FAKE):
        failed = reaches(services, killer, JobState.FAILED)
        completed(services, next_one)
    assert failed.error is not None
    assert (failed.error.code, failed.attempt) == ("worker_lost", 3)


def test_hanging_child_is_replaced(services: Services, environment: dict[str, str], submit: Callable[..., str]) -> None:
    hangs, next_one = submit("hang@3"), submit()
    with worker({**environment, "IVMIX_MAX_ATTEMPTS": "1", "IVMIX_STALL_TIMEOUT_S": "1"}, FAKE):
        reaches(services, hangs, JobState.FAILED)
        completed(services, next_one)


def test_child_that_lost_its_device_is_replaced(
    services: Services, environment: dict[str, str], submit: Callable[..., str]
) -> None:
    """After a fault a CUDA context is unusable: every later job in the same process would fail."""
    breaks, next_one = submit("fail@3"), submit()
    with worker({**environment, "IVMIX_MAX_ATTEMPTS": "1"}, FAKE) as process:
        before = child_of(process.pid)
        reaches(services, breaks, JobState.FAILED)
        completed(services, next_one)
        assert child_of(process.pid) != before
