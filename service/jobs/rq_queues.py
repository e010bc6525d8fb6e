"""The names RQ knows our work by, and the only place that sends it. Work travels as a dotted name and a job id."""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.job import Job
from rq.timeouts import BaseDeathPenalty

GENERATE = "worker.tasks.generate"

DELIVERED_TTL_S = 600  # RQ's own record of a job, kept after its end for somebody looking; ours is the truth


class TrustedJob(Job):
    """Whoever can write to Redis could name any function and any callback; only ours are run."""

    @property
    def func(self) -> Any:
        if self.func_name != GENERATE:
            raise PermissionError(f"{self.id}: {self.func_name} is not a function we run")
        return super().func

    @property
    def success_callback(self) -> None:
        return None

    @property
    def failure_callback(self) -> None:
        return None

    @property
    def stopped_callback(self) -> None:
        return None


class NoTimeout(BaseDeathPenalty):
    """Our work watches the clock itself; an exception out of SIGALRM could hit any line."""

    def setup_death_penalty(self) -> None: ...
    def cancel_death_penalty(self) -> None: ...


def generate_queue_name(model: str) -> str:
    """One queue per model, one queue per worker: RQ loses jobs that a multi-queue worker takes and drops (BLPOP)."""
    return f"gpu-{model}"


def all_queues(redis: Redis) -> list[Queue]:
    """Every queue that was ever sent to."""
    return Queue.all(redis, serializer="json")  # pyright: ignore[reportUnknownMemberType]  # rq is typed in part


def is_generate_queue(name: str) -> bool:
    return name.startswith(generate_queue_name(""))


def generate_queue(redis: Redis, model: str, *, job_timeout_s: int = 1800) -> Queue:
    """JSON, because with RQ's default (pickle) whoever can write to Redis runs code in the worker."""
    if job_timeout_s <= 0:
        raise ValueError(f"job_timeout_s={job_timeout_s}: a job without an end would hold a GPU for ever")
    return Queue(generate_queue_name(model), connection=redis, serializer="json", default_timeout=job_timeout_s)


def send_generate(queue: Queue, job_id: str, *, pipeline: Pipeline | None = None, at_front: bool = False) -> None:
    """With a pipeline, part of its transaction. No RQ retry: whether a job runs again is decided by our record."""
    queue.enqueue_call(  # pyright: ignore[reportUnknownMemberType]  # rq leaves list and dict items untyped
        GENERATE,
        args=(job_id,),
        job_id=job_id,
        result_ttl=DELIVERED_TTL_S,
        failure_ttl=DELIVERED_TTL_S,
        at_front=at_front,
        pipeline=pipeline,
    )


def recorded_generate(queue: Queue, job_id: str, *, at_front: bool = False) -> list[tuple[Any, ...]]:
    """The Redis commands by which RQ would send the job, for a script that runs them after it has looked around."""
    connection: Any = queue.connection  # redis-py leaves its pipelines untyped in part
    recorder = connection.pipeline()
    send_generate(queue, job_id, pipeline=recorder, at_front=at_front)
    return [arguments for arguments, _options in recorder.command_stack]


def queue_key(model: str) -> str:
    """The Redis list of the ids that wait for this model."""
    return f"{Queue.redis_queue_namespace_prefix}{generate_queue_name(model)}"
