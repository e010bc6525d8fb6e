"""The parent's RQ side; every override of RQ 3.0 in one place. tests/contract/test_rq.py holds the signatures.

RQ brings a job's id to a worker and nothing else: who has a job, how often it is tried and how it ended is in our own
record. So the worker is a SimpleWorker whose jobs only watch a child process, without RQ's retries, registries of
ended jobs, alarms, cleaning by the worker's clock, and commands over pub/sub, all of which would decide something. A
SIGTERM sets a flag that is asked at the moments when stopping loses nothing (rq#2236: stock RQ loses a job there).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import Any

import redis.exceptions
from redis import Redis
from redis.client import Pipeline
from rq import Queue, SimpleWorker
from rq.exceptions import DequeueTimeout, StopRequested
from rq.executions import Execution
from rq.job import Job, JobStatus

from service.jobs.rq_queues import CONFIGURATION, GPUS_FIELD, RQ_RECORD_TTL_S, NoTimeout, TrustedJob, generate_queue
from service.process.heartbeat_file import HeartbeatFile
from worker.parent.job_runner import Runner

log = logging.getLogger("ivmix.worker")

DEQUEUE_S = 5  # how long an idle worker blocks, so how late it notices a stop
MIN_SILENCE_S = 4 * DEQUEUE_S
FRESH_S = 2.0  # a heartbeat so young needs no other: every write is a sync of the disk, and the networks wait on_wait


class StoppableQueue(Queue):
    """Checks before every dequeue whether to stop, when that cannot lose a job."""

    worker: GenerationWorker | None = None  # RQ calls dequeue_any on the class

    @classmethod
    def dequeue_any(cls, *args: Any, **kwargs: Any) -> Any:
        """Deletes an entry that RQ cannot read, which would end every worker in turn; maintenance enqueues it again."""
        while cls.worker is None or not cls.worker.must_stop:
            try:
                return super().dequeue_any(*args, **kwargs)
            except (redis.exceptions.RedisError, DequeueTimeout):
                raise
            except Exception as e:
                job_id, queue = getattr(e, "job_id", None), getattr(e, "queue", None)
                if job_id is None or queue is None:
                    raise
                log.exception("job %s: RQ's entry cannot be read; deleted, maintenance will enqueue it again", job_id)
                queue.connection.delete(Job.key_for(job_id))
        raise StopRequested


class GenerationWorker(SimpleWorker):
    queue_class = StoppableQueue
    job_class = TrustedJob
    death_penalty_class = NoTimeout

    def __init__(
        self, connection: Redis, model: str, runner: Runner, stopping: threading.Event, heartbeat_file: HeartbeatFile
    ) -> None:
        name = generate_queue(connection, model).name
        queue = StoppableQueue(name, connection=connection, serializer="json", job_class=TrustedJob)
        super().__init__(  # pyright: ignore[reportUnknownMemberType]  RQ is typed in part
            [queue], connection=connection, serializer="json", worker_ttl=DEQUEUE_S + 15
        )
        self._runner, self._heartbeat_file, self._stopping = runner, heartbeat_file, stopping
        # Known as alive for as long as its lease, so that maintenance knows which models are loaded.
        self._silence_s = max(MIN_SILENCE_S, math.ceil(runner.settings.lease_s))
        self._beaten_at = -FRESH_S
        self.max_connection_wait_time = DEQUEUE_S
        StoppableQueue.worker = self

    @property
    def must_stop(self) -> bool:
        """Whether this worker takes no more jobs: it shuts down, or its models must be loaded again."""
        return self.is_draining or not self._runner.child.is_loaded

    @property
    def is_draining(self) -> bool:
        return self._stopping.is_set()

    def perform_job(self, job: Job, queue: Queue, execution: Execution) -> bool:  # noqa: ARG002  RQ's signature
        """Run the job, then remove its execution from RQ's registries, and its entry if the job is over."""
        status, is_over = JobStatus.FAILED, False
        try:
            self.prepare_job_execution(job, remove_from_intermediate_queue=True)
            _ = job.func  # raises PermissionError if it is not ours
            is_over = self._runner.run(
                job.id,
                execution.id,
                on_beat=lambda: self.beat(job, execution),
                is_draining=lambda: self.is_draining,
                on_finished=lambda: self.close_entry(job),
            )
            status = JobStatus.FINISHED
        except redis.exceptions.RedisError:
            raise  # the lease expires, and maintenance requeues the job
        except PermissionError:
            log.exception("job %s: function not allowed", job.id)
            is_over = True
        except Exception:
            log.exception("job %s could not be run", job.id)
        with self.connection.pipeline() as pipe:  # pyright: ignore[reportUnknownMemberType]
            self.cleanup_execution(job, pipe, execution)
            if is_over:
                _close(job, status, pipe)
            pipe.execute()
        return status is JobStatus.FINISHED

    def close_entry(self, job: Job) -> None:
        """Delete RQ's entry of a job that ended after `perform_job`. May be called from any thread."""
        try:
            with self.connection.pipeline() as pipe:  # pyright: ignore[reportUnknownMemberType]
                _close(job, JobStatus.FINISHED, pipe)
                pipe.execute()
        except redis.exceptions.RedisError as e:
            log.warning("job %s: cannot delete RQ's entry: %s", job.id, type(e).__name__)

    def beat(self, job: Job, execution: Execution) -> None:
        """Keep RQ's registries current for monitoring tools; job ownership depends on our lease only."""
        try:
            self.maintain_heartbeats(job, execution)
        except redis.exceptions.RedisError as e:
            log.warning("job %s: RQ heartbeat failed: %s", job.id, type(e).__name__)

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """While Redis is down RQ retries before every dequeue, without limit; a worker that shuts down must not.

        RQ beats three times between two jobs, in three writes each.
        """
        self._heartbeat_file.beat()
        if pipeline is not None:
            super().heartbeat(timeout, pipeline)
            return
        if time.monotonic() - self._beaten_at < FRESH_S:
            return
        try:
            with self.connection.pipeline() as pipe:  # pyright: ignore[reportUnknownMemberType]
                super().heartbeat(timeout or self._silence_s, pipe)
                pipe.execute()
        except redis.exceptions.RedisError:
            if self.is_draining:
                raise StopRequested from None
            raise
        self._beaten_at = time.monotonic()

    def serialize(self) -> dict[str, Any]:
        """What RQ keeps of this worker, with how it computes, for `GET /v1/queue`."""
        worker: Any = super()  # RQ is typed in part
        child = self._runner.child
        configuration = "" if child.configuration is None else child.configuration.model_dump_json()
        return worker.serialize() | {GPUS_FIELD: child.gpus, CONFIGURATION: configuration}

    def set_state(self, state: str, pipeline: Pipeline | None = None) -> None:
        """Skip writes that change nothing: RQ sets `idle` twice between two jobs."""
        if pipeline is not None or state != self._state:
            super().set_state(state, pipeline)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:  # noqa: ARG002  RQ's signature
        return self._silence_s

    def run_maintenance_tasks(self) -> None:
        """`ivmix maintenance` does it, for all workers."""

    def subscribe(self) -> None:
        """No commands: publishing to Redis must not stop jobs. Cancellation is a field of the job record."""

    def _shutdown(self) -> None:
        self._stopping.set()
        self._stop_requested = True

    def request_force_stop(self, signum: int, frame: Any) -> None:
        """A second signal changes nothing: the drain is already under way and takes one step."""


def _close(job: Job, status: JobStatus, pipe: Pipeline) -> None:
    job.set_status(status, pipeline=pipe)
    job.cleanup(RQ_RECORD_TTL_S, pipeline=pipe, remove_from_queue=False)
