"""`python -m tests.faults.recovery_times`: how long a worker's faults take, with the settings as they are shipped.

A real worker and maintenance, a real Valkey, the engine that only sleeps (half a second a step). About five minutes,
most of which are leases that run out.
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

    def until(self, is_so: Callable[[], bool]) -> float:
        """Seconds."""
        began = time.monotonic()
        while not is_so():
            if time.monotonic() - began > WAIT_S:
                raise TimeoutError
            time.sleep(POLL_S)
        return time.monotonic() - began

    def at_work(self, job_id: str) -> None:
        wait_for(lambda: self.job(job_id).step >= 2 or None, timeout_s=WAIT_S)

    def end(self, job_id: str) -> None:
        self.services.store.cancel(job_id)
        wait_for(lambda: self.job(job_id).state.is_terminal or None, timeout_s=WAIT_S)


def kill_child(bench: Bench) -> tuple[float, float]:
    """Until the job is taken again, and until it has made a step: in between the models are loaded."""
    job_id = bench.submit()
    with worker(bench.environment, "tests.fake_worker") as process:
        bench.at_work(job_id)
        execution = bench.job(job_id).execution_id
        os.kill(child_of(process.pid), signal.SIGKILL)
        taken = bench.until(lambda: bench.job(job_id).execution_id not in (None, execution))
        step = bench.job(job_id).step
        goes_on = taken + bench.until(lambda: bench.job(job_id).step > step)
        bench.end(job_id)
    return taken, goes_on


def kill_parent(bench: Bench) -> float:
    """Until the job waits again."""
    job_id = bench.submit()
    with worker(bench.environment, "tests.fake_worker") as process:
        bench.at_work(job_id)
        process.kill()
        seconds = bench.until(lambda: bench.job(job_id).state is JobState.QUEUED)
    bench.services.store.cancel(job_id)
    return seconds


def drain(bench: Bench) -> float:
    """Until the process has ended."""
    job_id = bench.submit()
    with worker(bench.environment, "tests.fake_worker") as process:
        bench.at_work(job_id)
        process.terminate()
        seconds = bench.until(lambda: process.poll() is not None)
    assert bench.job(job_id).state is JobState.QUEUED
    bench.services.store.cancel(job_id)
    return seconds


def main(
    trials: Annotated[int, typer.Option(min=1, help="Of each; the parent is killed three times at most.")] = 5,
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ivmix-figures-"))
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
        ("kill -9 child", "its job is taken again", [taken for taken, _ in children], "2"),
        ("kill -9 child", "its job goes on, models loaded", [goes_on for _, goes_on in children], "2 + models + step"),
        ("SIGTERM", "the process has ended", drains, f"{STEP_S + 5:g}"),
        ("kill -9 parent", "its job waits for another", parents, f"{lease_s + 10:g}"),
    ):
        table.add_row(name, until, str(len(seconds)), f"{median(seconds):.2f}", f"{max(seconds):.2f}", promise)
    Console(width=110).print(table)


if __name__ == "__main__":
    typer.run(main)
