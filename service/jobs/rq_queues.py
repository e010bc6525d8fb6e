"""RQ queues and entries. RQ only carries a function name and a job id to a worker; all state is in the job record."""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.job import Job
from rq.timeouts import BaseDeathPenalty

GENERATE = "worker.tasks.generate"

GPUS_FIELD = "gpus"  # of a worker in RQ's registry: how many compute each of its videos; RQ ignores it
RQ_RECORD_TTL_S = 600  # how long RQ's record of an ended job is kept, for inspection only

CONFIGURATION = "ivmix_configuration"  # field of RQ's record of a worker: how its networks run, as JSON


class TrustedJob(Job):
    """Runs only our function, and no callbacks, because anyone who can write to Redis can name others."""

    @property
    def func(self) -> Any:
        if self.func_name != GENERATE:
            raise PermissionError(f"{self.id}: function {self.func_name} is not allowed, only {GENERATE}")
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
    """Disables RQ's timeout, which raises from SIGALRM at any line; the job monitor enforces ours."""

    def setup_death_penalty(self) -> None: ...
    def cancel_death_penalty(self) -> None: ...


def generate_queue_name(model: str) -> str:
    """One queue per model and one queue per worker: with several, RQ uses BLPOP and loses jobs when a worker dies."""
    return f"gpu-{model}"


def queue_key(model: str) -> str:
    """Return the key of the Redis list of a model's queued job ids."""
    return f"{Queue.redis_queue_namespace_prefix}{generate_queue_name(model)}"


def all_queues(redis: Redis) -> list[Queue]:
    """Return every queue that has ever been used."""
    return Queue.all(redis, serializer="json")  # pyright: ignore[reportUnknownMemberType]  # rq is only partly typed


def is_generate_queue(name: str) -> bool:
    return name.startswith(generate_queue_name(""))


def model_of(name: str) -> str:
    """Return the model of a queue for which `is_generate_queue` is true."""
    return name.removeprefix(generate_queue_name(""))


def generate_queue(redis: Redis, model: str, *, job_timeout_s: int = 1800) -> Queue:
    """Return a model's queue. Entries are JSON: pickle, RQ's default, can run code when it is loaded."""
    if job_timeout_s <= 0:
        raise ValueError(f"job_timeout_s={job_timeout_s} must be positive, or a job could hold a GPU forever")
    return Queue(generate_queue_name(model), connection=redis, serializer="json", default_timeout=job_timeout_s)


def send_generate(queue: Queue, job_id: str, *, pipeline: Pipeline | None = None, at_front: bool = False) -> None:
    """Enqueue a job, with a pipeline as part of its transaction. RQ never retries; the job record decides that."""
    queue.enqueue_call(  # pyright: ignore[reportUnknownMemberType]  # rq leaves list and dict items untyped
        GENERATE,
        args=(job_id,),
        job_id=job_id,
        result_ttl=RQ_RECORD_TTL_S,
        failure_ttl=RQ_RECORD_TTL_S,
        at_front=at_front,
        pipeline=pipeline,
    )


def recorded_generate(queue: Queue, job_id: str, *, at_front: bool = False) -> list[tuple[Any, ...]]:
    """Return the Redis commands of `send_generate` without running them, for a script that does."""
    connection: Any = queue.connection  # redis-py's pipelines are only partly typed
    recorder = connection.pipeline()
    send_generate(queue, job_id, pipeline=recorder, at_front=at_front)
    return [arguments for arguments, _options in recorder.command_stack]
