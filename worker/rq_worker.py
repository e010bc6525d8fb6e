"""The parent's RQ side; every override of RQ 3.0 in one place. tests/contract/test_rq.py holds the signatures.

The worker is a SimpleWorker whose jobs only watch a child process, so RQ's bookkeeping stays in a process without
CUDA. What stock RQ lacks and is added here: a lease that is renewed while a job runs, no alarm signal that could hit
a half-done write, and a SIGTERM that cannot lose a job between taking and starting it (rq#2236).
"""

from __future__ import annotations

import threading
import time
from typing import Any

import redis.exceptions
from redis import Redis
from redis.client import Pipeline
from rq import Queue, SimpleWorker
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.job import Job

from service.queues import NoAlarm, OurJob, generate_queue

LEASE_S = 45
BEAT_S = 10.0
DEQUEUE_S = 5  # how long an idle worker blocks, so how late it notices a stop


class StoppableQueue(Queue):
    """Asks before every dequeue whether the worker is to stop: the one moment when stopping loses nothing."""

    stopping = threading.Event()  # RQ calls dequeue_any on the class

    @classmethod
    def dequeue_any(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.stopping.is_set():
            raise StopRequested
        return super().dequeue_any(*args, **kwargs)


class ResidentWorker(SimpleWorker):
    queue_class = StoppableQueue
    job_class = OurJob
    death_penalty_class = NoAlarm

    def __init__(self, connection: Redis, model: str) -> None:
        name = generate_queue(connection, model).name
        queue = StoppableQueue(name, connection=connection, serializer="json", job_class=OurJob)
        super().__init__(  # pyright: ignore[reportUnknownMemberType]  RQ is typed in part
            [queue], connection=connection, serializer="json", worker_ttl=DEQUEUE_S + 15
        )
        self._execution: Execution | None = None
        self._last_beat = 0.0
        self.max_connection_wait_time = DEQUEUE_S
        StoppableQueue.stopping.clear()

    @property
    def is_draining(self) -> bool:
        return StoppableQueue.stopping.is_set()

    @property
    def execution_id(self) -> str:
        assert self._execution is not None, "only inside a job"
        return self._execution.id

    def prepare_execution(self, job: Job) -> Execution:
        self._execution = super().prepare_execution(job)
        self._last_beat = time.monotonic()
        return self._execution

    def beat(self, job: Job) -> None:
        """Renew the lease, at most every BEAT_S. An outage of Redis is waited out: the lease is longer."""
        now = time.monotonic()
        if now - self._last_beat < BEAT_S or self._execution is None:
            return
        self._last_beat = now
        try:
            self.maintain_heartbeats(job, self._execution)
        except redis.exceptions.RedisError:
            self.log.warning("heartbeat of %s failed, next in %.0f s", job.id, BEAT_S, exc_info=True)

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """While Redis is away RQ waits for it before every dequeue, for ever: a worker that is to stop must not."""
        if pipeline is None and self.is_draining:
            raise StopRequested
        super().heartbeat(timeout, pipeline)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:  # noqa: ARG002  RQ's signature
        return LEASE_S

    def _shutdown(self) -> None:
        StoppableQueue.stopping.set()
        self._stop_requested = True

    def request_force_stop(self, signum: int, frame: Any) -> None:
        """A second signal changes nothing: the drain is already under way and takes one step."""
