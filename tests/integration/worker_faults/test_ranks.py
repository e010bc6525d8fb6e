"""A worker whose clips two processes compute: whichever of them is killed or hangs, the job goes on, byte for byte."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest
from rq import Queue

from service.jobs.model import Job, JobState
from service.jobs.queue_and_waiting_time import queue_stats
from service.wiring import Services
from tests.factories import make_generation
from tests.job_waits import now, reaches
from tests.processes import child_of, command_of, is_running, session_of, wait_for, worker

LOADS_S = 300.0  # a busy machine takes minutes to load the models twice
GENERATION = make_generation(num_frames=2, num_inference_steps=10)
PATIENT = {"IVMIX_STALL_TIMEOUT_S": "30", "IVMIX_LEASE_S": "30", "IVMIX_CHECKPOINT_S": "0.01", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def two(environment: dict[str, str]) -> Iterator[int]:
    """Process id of a worker of the demo models."""
    with worker(environment | PATIENT, "worker", "demo", "--cpu-processes", "2") as process:
        yield process.pid
        pids = session_of(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        wait_for(lambda: not any(map(is_running, pids)), hint="for all its processes to end")


def other_rank(parent: int) -> int:
    """Process id of the second process."""
    return wait_for(lambda: next((pid for pid in session_of(parent) if "worker.child.ranks" in command_of(pid)), None))


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # of a busy machine
def test_job_goes_on_byte_for_byte_when_one_of_two_processes_ends_or_hangs(
    services: Services, queue: Queue, two: int
) -> None:
    def result(disturb: Callable[[], None] | None = None) -> tuple[str, int]:
        """SHA-256 of the video, and the attempts it took."""
        job_id = services.store.create(Job.new(GENERATION), queue).id
        if disturb is not None:
            wait_for(lambda: now(services, job_id).step >= 4, timeout_s=LOADS_S)
            disturb()
        job = reaches(services, job_id, JobState.COMPLETED, timeout_s=LOADS_S)
        assert job.output is not None
        return job.output.sha256, job.attempt

    undisturbed, attempts = result()
    assert attempts == 1
    (shown,) = queue_stats(services.redis, services.store, "demo").workers
    assert shown.gpus == 2
    assert result(lambda: kill(other_rank(two))) == (undisturbed, 2)

    other = other_rank(two)
    assert result(lambda: kill(child_of(two))) == (undisturbed, 2)
    assert not is_running(other)

    assert result(lambda: stop(other_rank(two))) == (undisturbed, 2)
