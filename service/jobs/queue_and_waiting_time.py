"""Queue depth, workers, throughput and estimated waiting time of each model. Only reads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from redis import Redis
from rq import Queue, Worker
from rq.registry import StartedJobRegistry

from service.jobs.model import Job
from service.jobs.rq_queues import CONFIGURATION, GPUS_FIELD, generate_queue
from service.jobs.store import KEPT_DURATIONS, JobStore

HOUR_S = 3600.0


@dataclass(frozen=True)
class WorkerStats:
    name: str
    state: str  # RQ's: starting, idle, busy, suspended
    last_seen: float | None  # last heartbeat, unix seconds
    job: Job | None  # the job it is running
    configuration: str | None = None  # how its networks run, as JSON
    gpus: int = 1  # that compute each of its clips; on a CPU, processes


@dataclass(frozen=True)
class QueueStats:
    """State of one model's queue."""

    model: str
    queued: int
    ahead: int  # waiting jobs that would run before a new one; see `with_jobs_ahead`
    running: int
    workers: tuple[WorkerStats, ...]
    videos_per_hour: float
    seconds_per_video: float | None  # mean of the last videos; None if there are none

    @property
    def estimated_wait_s(self) -> float | None:
        """Seconds until a video that is requested now would start; None without workers or completed videos."""
        if not self.workers or self.seconds_per_video is None:
            return None
        videos_ahead = self.ahead + sum(1 - worker.job.progress / 100 for worker in self.workers if worker.job)
        has_idle_worker = any(worker.job is None for worker in self.workers)
        if has_idle_worker and not self.ahead:
            return 0.0
        return videos_ahead * self.seconds_per_video / len(self.workers)


def queue_stats(redis: Redis, store: JobStore, model: str) -> QueueStats:
    """Collect the state of one model's queue. A new job is assumed to wait for all others."""
    queue = generate_queue(redis, model)
    durations = store.recent_durations(model)
    queued = queue.count
    return QueueStats(
        model=model,
        queued=queued,
        ahead=queued,
        running=_running(queue),
        workers=_workers(redis, store, queue),
        videos_per_hour=round(_per_hour([completed_at for completed_at, _ in durations], time.time()), 2),
        seconds_per_video=sum(seconds for _, seconds in durations) / len(durations) if durations else None,
    )


def with_jobs_ahead(store: JobStore, stats: QueueStats, owners: Sequence[str]) -> list[QueueStats]:
    """Return the state as a new job of each owner would find it."""
    if stats.estimated_wait_s is None or not stats.queued:  # spares Redis walking the queue
        return [stats] * len(owners)
    return [replace(stats, ahead=ahead) for ahead in store.jobs_ahead(stats.model, owners)]


def _running(queue: Queue) -> int:
    redis: Any = queue.connection
    # The registry's own count would remove expired executions first, and reading should not write.
    return redis.zcard(StartedJobRegistry(queue=queue).key)


def _workers(redis: Redis, store: JobStore, queue: Queue) -> tuple[WorkerStats, ...]:
    worker_class: Any = Worker  # rq is only partly typed
    workers: list[Any] = worker_class.all(connection=redis, queue=queue, serializer="json")
    return tuple(_worker(worker, store) for worker in sorted(workers, key=lambda worker: worker.name))


def _worker(worker: Any, store: JobStore) -> WorkerStats:
    configuration, gpus = worker.connection.hmget(worker.key, CONFIGURATION, GPUS_FIELD)  # older workers have neither
    return WorkerStats(
        name=worker.name,
        state=str(worker.get_state()),
        last_seen=_unix_seconds(worker.last_heartbeat),
        job=store.view_any(job_id) if (job_id := worker.get_current_job_id()) else None,
        configuration=configuration.decode() if configuration else None,
        gpus=int(gpus or 1),
    )


def _per_hour(completions: list[float], now: float) -> float:
    """Count the completions of the last hour; extrapolate if more happened than the store keeps."""
    recent = [completed_at for completed_at in completions if now - completed_at < HOUR_S]
    if len(recent) < len(completions) or len(recent) < KEPT_DURATIONS:
        return float(len(recent))
    return len(recent) * HOUR_S / max(1.0, now - min(recent))


def _unix_seconds(at: datetime | None) -> float | None:
    return None if at is None else (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
