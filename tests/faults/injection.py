"""What an injected fault works with: the cluster, its random choices, and ways to find something to break."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from redis.exceptions import RedisError
from rq import Worker

from service.jobs.keys import ACTIVE
from service.jobs.model import Job, JobState
from tests.faults.cluster import WORKERS, Cluster, Process

TARGET_TIMEOUT_S = 8.0  # how long a fault waits for something to break
SHORT_S = 2.0  # the duration of a short outage


class NoTarget(Exception):
    """There was nothing to break."""


@dataclass
class Injection:
    """One fault while it is injected. `record(...)` adds details to its line in the history."""

    cluster: Cluster
    random: random.Random
    record: Callable[..., None]

    def process(self, names: tuple[str, ...]) -> Process:
        return self.cluster.processes[self.random.choice(names)]

    def busy_worker(self) -> tuple[Process, str]:
        """A worker and the id of the job that it runs."""
        names = self.random.sample(WORKERS, len(WORKERS))

        def found() -> tuple[Process, str] | None:
            jobs = self._current_jobs()
            for process in (self.cluster.processes[name] for name in names):
                if process.is_running and (job_id := jobs.get(process.handle.pid)):
                    return process, job_id
            return None

        return self.wait(found)

    def job(self, state: JobState, matches: Callable[[Job], bool] = lambda _: True) -> Job:
        def found() -> Job | None:
            for job_id in sorted(self._redis.smembers(ACTIVE)):
                with suppress(ValueError):
                    job = self.cluster.services.store.get(job_id.decode())
                    if job and job.state is state and matches(job):
                        return job
            return None

        return self.wait(found)

    def wait(self, find: Callable[[], Any]) -> Any:
        """Poll until `find` returns something. Raises NoTarget after TARGET_TIMEOUT_S."""
        deadline = time.monotonic() + TARGET_TIMEOUT_S
        while time.monotonic() < deadline:
            with suppress(RedisError):
                if (found := find()) is not None:
                    return found
            time.sleep(0.02)
        raise NoTarget

    @property
    def _redis(self) -> Any:
        return self.cluster.redis

    def _current_jobs(self) -> dict[int, str]:
        """Process ids of workers -> their job, as RQ's worker records show it."""
        workers: list[Any] = Worker.all(connection=self._redis, serializer="json")
        return {worker.pid: job_id for worker in workers if (job_id := worker.get_current_job_id())}


Inject = Callable[[Injection], Iterator[float]]  # breaks, yields the duration in seconds, repairs


class FaultKind(NamedTuple):
    """Only one fault at a time affects the same `target`."""

    target: str
    inject: Inject
