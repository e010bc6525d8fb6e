"""The promises while a parent is stopped, killed or frozen."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rq import Queue

from service.jobs.model import JobState
from service.jobs.rq_queues import send_generate
from service.storage import object_keys
from service.wiring import Services
from tests.integration.worker_faults.conftest import FAKE, LEASE_S
from tests.job_waits import WAIT_S, completed, now, reaches, reaches_step
from tests.processes import child_of, is_running, wait_for, worker


@pytest.mark.usefixtures("maintenance")
def test_job_of_a_killed_parent_is_requeued_when_its_lease_ends(
    services: Services, environment: dict[str, str], submit: Callable[..., str]
) -> None:
    job_id = submit("late@5", steps=10)
    with worker(environment, FAKE) as process:
        reaches_step(services, job_id, 5)
        child = child_of(process.pid)
        process.kill()
        reaches(services, job_id, JobState.QUEUED, timeout_s=10 * LEASE_S)  # tests.faults.recovery_times measures it
        wait_for(lambda: not is_running(child), hint="for the child to end with its parent")
    Path(environment["FAKE_GATE"]).touch()
    with worker(environment, FAKE):
        assert completed(services, job_id).attempt == 2


@pytest.mark.sample(1)
@pytest.mark.parametrize("signals", [1, 3])
def test_stopped_worker_hands_its_job_back_uncharged_with_its_state(
    services: Services, environment: dict[str, str], submit: Callable[..., str], queue: Queue, signals: int
) -> None:
    first, second = submit(steps=100_000), submit()
    with worker({**environment, "IVMIX_CHECKPOINT_S": "3600"}, FAKE) as process:
        reaches_step(services, first, 10)
        for _ in range(signals):
            process.terminate()
            time.sleep(0.02)
        assert process.wait(30) == 0
    left = now(services, first)
    assert (left.state, left.attempt, left.error) == (JobState.QUEUED, 0, None)
    assert queue.job_ids == [first, second]
    stored = b"".join(services.storage.open(object_keys.checkpoint(first)))
    assert int(stored) >= 10


@pytest.mark.slow
def test_worker_that_is_stopped_between_taking_and_starting_a_job_hands_it_back(
    services: Services, environment: dict[str, str], submit: Callable[..., str], queue: Queue, tmp_path: Path
) -> None:
    """Stock RQ loses the job there (rq#2236)."""
    job_id = submit(steps=100_000)
    window = tmp_path / "window"
    with worker({**environment, "FAKE_WINDOW": str(window)}, FAKE) as process:
        wait_for(lambda: window.exists() or None)
        process.terminate()
        assert process.wait(30) == 0
    assert (now(services, job_id).state, queue.job_ids) == (JobState.QUEUED, [job_id])
    assert services.redis.llen(queue.intermediate_queue_key) == 0


@pytest.mark.usefixtures("maintenance")
def test_job_of_a_worker_that_is_killed_between_taking_and_starting_is_sent_again(
    services: Services, environment: dict[str, str], submit: Callable[..., str], queue: Queue, tmp_path: Path
) -> None:
    job_id = submit()
    window = tmp_path / "window"
    with worker({**environment, "FAKE_WINDOW": str(window)}, FAKE) as process:
        wait_for(lambda: window.exists() or None)
        process.kill()
        process.wait()
    wait_for(lambda: queue.job_ids == [job_id] or None, timeout_s=WAIT_S)
    with worker(environment, FAKE):
        assert completed(services, job_id).attempt == 1


@pytest.mark.usefixtures("maintenance")
def test_zombie_that_wakes_up_commits_nothing(
    services: Services, environment: dict[str, str], submit: Callable[..., str]
) -> None:
    """Its child went on and finished the video on_wait; so did the worker that has the job now."""
    job_id = submit("late@5", steps=10)
    with worker(environment, FAKE) as zombie:
        reaches_step(services, job_id, 5)
        first = now(services, job_id).execution_id
        os.kill(zombie.pid, signal.SIGSTOP)
        with worker(environment, FAKE):
            wait_for(lambda: now(services, job_id).execution_id not in (None, first) or None, timeout_s=WAIT_S)
            Path(environment["FAKE_GATE"]).touch()
            done = completed(services, job_id)
            os.kill(zombie.pid, signal.SIGCONT)
            time.sleep(1)  # in which a zombie would do harm
            assert now(services, job_id) == done
        next_one = submit()
        completed(services, next_one)  # by one of them: the zombie is a worker like any other again
    assert done.execution_id != first

    def is_tidy() -> bool:
        return {file.key.split("/")[2] for file in services.storage.list(object_keys.videos(job_id))} == {
            done.execution_id
        }

    wait_for(is_tidy, timeout_s=WAIT_S, hint="for the zombie's files to be removed")


@pytest.mark.slow
@pytest.mark.usefixtures("maintenance")
def test_zombie_that_wakes_up_while_another_works_commits_nothing(
    services: Services, environment: dict[str, str], submit: Callable[..., str], tmp_path: Path
) -> None:
    """The job has not ended, so nothing but the execution's id stands in its way."""
    job_id = submit("late@5", steps=10)
    with worker({**environment, "FAKE_GATE": str(tmp_path / "first")}, FAKE) as zombie:
        reaches_step(services, job_id, 5)
        first = now(services, job_id).execution_id
        os.kill(zombie.pid, signal.SIGSTOP)
        with worker({**environment, "FAKE_GATE": str(tmp_path / "second")}, FAKE):
            wait_for(lambda: now(services, job_id).execution_id not in (None, first) or None, timeout_s=WAIT_S)
            second = now(services, job_id).execution_id
            (tmp_path / "first").touch()
            key = f"{object_keys.execution(job_id, str(first))}manifest.json"
            wait_for(lambda: services.storage.size(key) is not None or None, timeout_s=WAIT_S)
            os.kill(zombie.pid, signal.SIGCONT)
            completed(services, submit())  # by the zombie, which therefore has tried
            assert (now(services, job_id).state, now(services, job_id).execution_id) == (JobState.RUNNING, second)
            (tmp_path / "second").touch()
            assert completed(services, job_id).execution_id == second


def test_two_workers_with_one_job_complete_it_once(
    services: Services, environment: dict[str, str], submit: Callable[..., str], queue: Queue
) -> None:
    job_id = submit("late@5", steps=10)
    with worker(environment, FAKE), worker(environment, FAKE):
        reaches_step(services, job_id, 5)
        send_generate(queue, job_id)  # RQ delivers it a second time
        wait_for(lambda: not queue.job_ids or None)
        Path(environment["FAKE_GATE"]).touch()
        done = completed(services, job_id)
        time.sleep(0.5)
        assert now(services, job_id) == done
    assert done.attempt == 1
