"""The promises about the process that children are forked from."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from rq import Queue

from service.jobs.model import JobState
from service.storage import object_keys
from service.wiring import Services
from tests.integration.worker_faults.conftest import FAKE
from tests.job_waits import completed, now, reaches_step
from tests.processes import child_of, fork_server_of, is_running, parent_of, session_of, wait_for, worker


def test_killed_parent_takes_the_fork_server_with_it(
    services: Services, environment: dict[str, str], submit: Callable[..., str]
) -> None:
    with worker(environment, FAKE) as process:
        reaches_step(services, submit("hang@5"), 5)
        family = session_of(process.pid)
        assert {child_of(process.pid), fork_server_of(process.pid)} <= family
        process.kill()
        wait_for(lambda: not any(map(is_running, family)), hint="for what the worker started to end with it")


def test_child_ends_with_its_fork_server_and_the_next_ones_resume_its_job(
    services: Services, environment: dict[str, str], submit: Callable[..., str]
) -> None:
    """The parent learns nothing more about such a child, which must not hold the GPU while another one loads."""
    job_id = submit("hang@5", steps=10)
    with worker({**environment, "IVMIX_STALL_TIMEOUT_S": "60", "IVMIX_MAX_ATTEMPTS": "1"}, FAKE) as process:
        reaches_step(services, job_id, 5)
        child, server = child_of(process.pid), fork_server_of(process.pid)
        os.kill(server, signal.SIGKILL)
        wait_for(lambda: not is_running(child), hint="for the child to end with its fork server")
        completed(services, submit())
        assert fork_server_of(process.pid) != server
        assert process.poll() is None, "the parent lives on"


def test_signal_for_all_processes_of_a_worker_drains_it(
    services: Services, environment: dict[str, str], submit: Callable[..., str], queue: Queue
) -> None:
    """As service managers and terminals send it."""
    job_id = submit(steps=100_000)
    with worker({**environment, "IVMIX_CHECKPOINT_S": "3600", "IVMIX_LEASE_S": "60"}, FAKE) as process:
        reaches_step(services, job_id, 10)
        family = session_of(process.pid)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(30) == 0
        wait_for(lambda: not any(map(is_running, family)))
    left = now(services, job_id)
    assert (left.state, left.attempt, queue.job_ids) == (JobState.QUEUED, 0, [job_id])
    assert services.storage.size(object_keys.checkpoint(job_id))


@pytest.mark.slow
def test_each_child_has_the_descriptors_of_the_first(
    services: Services, environment: dict[str, str], submit: Callable[..., str]
) -> None:
    """None of an earlier child, and none of the fork server, which would keep a dead worker's pipes open."""
    with worker(environment, FAKE) as process:
        found: list[int] = []
        for _ in range(3):
            completed(services, submit())
            child = child_of(process.pid)
            assert parent_of(child) == fork_server_of(process.pid)
            found.append(len(os.listdir(f"/proc/{child}/fd")))
            os.kill(child, signal.SIGKILL)
            wait_for(lambda child=child: not is_running(child))
        assert found == found[:1] * 3
