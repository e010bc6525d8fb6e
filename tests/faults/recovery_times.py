"""`python -m tests.faults.recovery_times` measures recovery from worker faults with the default settings.

It runs a real worker, maintenance process and Valkey with an engine that only sleeps, half a second per step. It takes
about five minutes, most of them waiting for leases to expire.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.jobs.model import Job, JobState
from service.jobs.rq_queues import generate_queue
from service.settings import Settings
from service.wiring import Services, open_services
from tests.factories import make_generation
from tests.processes import child_of, started, wait_for, worker
from tests.valkey import Valkey

STEP_S, STEPS = 0.5, 100_000
WAIT_S = 180.0
POLL_S = 0.01


@dataclass
class Bench:
    services: Services
    environment: dict[str, str]

    def submit(self) -> str:
        job = Job.new(make_generation(num_inference_steps=STEPS))
        return self.services.store.create(job, generate_queue(self.services.redis, "demo")).id

    def job(self, job_id: str) -> Job:
        job = self.services.store.get(job_id)
        assert job is not None
        return job

    def seconds_until(self, condition: Callable[[], bool]) -> float:
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > WAIT_S:
                raise TimeoutError
            time.sleep(POLL_S)
        return time.monotonic() - began

    def wait_until_running(self, job_id: str) -> None:
        wait_for(lambda: self.job(job_id).step >= 2 or None, timeout_s=WAIT_S)

    def cancel(self, job_id: str) -> None:
        self.services.store.cancel(job_id)
        wait_for(lambda: self.job(job_id).state.is_terminal or None, timeout_s=WAIT_S)


def kill_child(bench: Bench) -> tuple[float, float]:
    """Seconds until the job is started again, and until its next step, after the models were loaded again."""
    job_id = bench.submit()
    with worker(bench.environment, "tests.fake_worker") as process:
        bench.wait_until_running(job_id)
        execution = bench.job(job_id).execution_id
        os.kill(child_of(process.pid), signal.SIGKILL)
        restarted = bench.seconds_until(lambda: bench.job(job_id).execution_id not in (None, execution))
        step = bench.job(job_id).step
        next_step = restarted + bench.seconds_until(lambda: bench.job(job_id).step > step)
        bench.cancel(job_id)
    return restarted, next_step


def kill_parent(bench: Bench) -> float:
    """Seconds until the job is queued again."""
    job_id = bench.submit()
    with worker(bench.environment, "tests.fake_worker") as process:
        bench.wait_until_running(job_id)
        process.kill()
        seconds = bench.seconds_until(lambda: bench.job(job_id).state is JobState.QUEUED)
    bench.services.store.cancel(job_id)
    return seconds


def drain(bench: Bench) -> float:
    """Seconds until the process has exited."""
    job_id = bench.submit()
    with worker(bench.environment, "tests.fake_worker") as process:
        bench.wait_until_running(job_id)
        process.terminate()
        seconds = bench.seconds_until(lambda: process.poll() is not None)
    assert bench.job(job_id).state is JobState.QUEUED
    bench.services.store.cancel(job_id)
    return seconds


def main(
    trials: Annotated[int, typer.Option(min=1, help="Trials per fault; the parent is killed at most three times.")] = 5,
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ivmix-recovery-"))
    with Valkey(folder / "valkey") as server:
        settings = Settings(redis_url=server.url, data_dir=folder / "data")
        services = open_services(settings)
        environment = {
            "IVMIX_REDIS_URL": server.url,
            "IVMIX_DATA_DIR": str(folder / "data"),
            "FAKE_STEP_S": str(STEP_S),
        }
        bench = Bench(services, environment)
        with started(environment, "service.maintenance"):
            children = [kill_child(bench) for _ in range(trials)]
            drains = [drain(bench) for _ in range(trials)]
            parents = [kill_parent(bench) for _ in range(min(trials, 3))]
        services.close()
    table = Table("fault", "until", "trials", "median s", "worst s", "promised s")
    lease_s = settings.lease_s
    for name, until, seconds, promise in (
        ("kill -9 child", "job restarted", [restarted for restarted, _ in children], "2"),
        ("kill -9 child", "next step, models loaded", [next_step for _, next_step in children], "2 + models + step"),
        ("SIGTERM", "process exited", drains, f"{STEP_S + 5:g}"),
        ("kill -9 parent", "job queued again", parents, f"{lease_s + 10:g}"),
    ):
        table.add_row(name, until, str(len(seconds)), f"{median(seconds):.2f}", f"{max(seconds):.2f}", promise)
    Console(width=110).print(table)


if __name__ == "__main__":
    typer.run(main)
