"""The promises while one job is decoded and stored, and the networks have the next."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rq import Queue

from service.jobs.model import JobState
from service.jobs.rq_queues import generate_queue
from service.wiring import Services
from tests.integration.worker_faults.conftest import FAKE, LEASE_S
from tests.job_waits import completed, now, reaches, reaches_step
from tests.processes import child_of, wait_for, worker


def test_next_job_is_sampled_while_the_last_one_is_stored(
    services: Services, environment: dict[str, str], two: Callable[[], tuple[str, str]]
) -> None:
    with worker(environment, FAKE):
        first, second = two()
        Path(environment["FAKE_GATE"]).touch()
        done = [completed(services, job_id) for job_id in (first, second)]
        wait_for(lambda: Queue("gpu-demo", connection=services.redis).started_job_registry.count == 0)
        for job in done:  # RQ's entries go, later
            wait_for(lambda job=job: services.redis.ttl(f"rq:job:{job.id}") > 0)
    assert [job.attempt for job in done] == [1, 1]
    assert done[0].completed_at <= done[1].completed_at


@pytest.mark.slow
def test_third_job_waits_until_the_first_is_stored(
    services: Services, environment: dict[str, str], submit: Callable[..., str]
) -> None:
    first, second, third = submit("late@decode"), submit(), submit()
    with worker({**environment, "IVMIX_STALL_TIMEOUT_S": "60"}, FAKE):
        reaches_step(services, second, 20)
        time.sleep(LEASE_S + 1)  # for longer than a lease
        assert [now(services, job_id).state for job_id in (first, second, third)] == ["running", "running", "queued"]
        Path(environment["FAKE_GATE"]).touch()
        done = [completed(services, job_id) for job_id in (first, second, third)]
    assert [job.attempt for job in done] == [1, 1, 1]
    assert [job.completed_at for job in done] == sorted(job.completed_at for job in done)


@pytest.mark.sample(1)
@pytest.mark.parametrize("fault", ["die", "fail", "hang"])
def test_child_that_breaks_while_it_stores_costs_both_jobs_an_attempt(
    services: Services,
    environment: dict[str, str],
    submit: Callable[..., str],
    two: Callable[[], tuple[str, str]],
    fault: str,
) -> None:
    with worker(environment, FAKE):
        first, second = two()
        third = submit(f"{fault}@decode")
        Path(environment["FAKE_GATE"]).touch()
        completed(services, first)
        completed(services, second)
        failed = reaches(services, third, JobState.FAILED)
        completed(services, submit())
    assert failed.error is not None
    assert failed.attempt == 3


@pytest.mark.slow
def test_killed_child_has_two_jobs_and_both_are_done(
    services: Services, environment: dict[str, str], two: Callable[[], tuple[str, str]]
) -> None:
    with worker(environment, FAKE) as process:
        first, second = two()
        os.kill(child_of(process.pid), signal.SIGKILL)
        Path(environment["FAKE_GATE"]).touch()
        assert [completed(services, job_id).attempt for job_id in (first, second)] == [2, 2]


@pytest.mark.usefixtures("maintenance")
def test_killed_parent_has_two_jobs_and_both_are_requeued(
    services: Services, environment: dict[str, str], two: Callable[[], tuple[str, str]]
) -> None:
    with worker(environment, FAKE) as process:
        first, second = two()
        process.kill()
        Path(environment["FAKE_GATE"]).touch()
        with worker(environment, FAKE):
            assert [completed(services, job_id).attempt for job_id in (first, second)] == [2, 2]


def test_stopped_worker_stores_what_is_finished_and_hands_the_other_back(
    services: Services, environment: dict[str, str], two: Callable[[], tuple[str, str]]
) -> None:
    with worker(environment, FAKE) as process:
        first, second = two()
        process.terminate()
        wait_for(lambda: now(services, second).state is JobState.QUEUED)
        Path(environment["FAKE_GATE"]).touch()
        assert process.wait(30) == 0
    assert completed(services, first).attempt == 1
    assert (now(services, second).state, now(services, second).attempt) == (JobState.QUEUED, 0)
    assert generate_queue(services.redis, "demo").job_ids == [second]


@pytest.mark.slow
def test_stopped_worker_does_not_wait_for_ever_for_a_clip_to_be_stored(
    services: Services, environment: dict[str, str], two: Callable[[], tuple[str, str]]
) -> None:
    with worker({**environment, "IVMIX_STOP_GRACE_S": "1", "IVMIX_STALL_TIMEOUT_S": "60"}, FAKE) as process:
        first, second = two()
        process.terminate()
        assert process.wait(30) == 0
    assert [(now(services, job_id).state, now(services, job_id).attempt) for job_id in (first, second)] == [
        (JobState.QUEUED, 0),
        (JobState.QUEUED, 0),
    ]
