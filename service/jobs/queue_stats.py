"""How busy each model is: what waits, what runs, who works, how fast. Reads RQ's books and ours; changes nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from redis import Redis
from rq import Queue, Worker
from rq.registry import StartedJobRegistry

from service.jobs.model import Job
from service.jobs.rq_queues import generate_queue
from service.jobs.store import JobStore

HOUR_S = 3600.0


@dataclass(frozen=True)
class WorkerStats:
    name: str
    state: str  # RQ's word: starting, idle, busy, suspended
    last_seen: float | None  # unix seconds
    job: Job | None  # what it works on


@dataclass(frozen=True)
class QueueStats:
    """`seconds_per_video` is the mean of the last ones; the wait is that of a video asked for now. None: not known."""

    model: str
    queued: int
    running: int
    workers: tuple[WorkerStats, ...]
    videos_per_hour: float
    seconds_per_video: float | None

    @property
    def estimated_wait_s(self) -> float | None:
        if not self.workers or self.seconds_per_video is None:
            return None
        ahead = self.queued + sum(1 - worker.job.progress / 100 for worker in self.workers if worker.job)
        free = any(worker.job is None for worker in self.workers)
        return 0.0 if free and not self.queued else ahead * self.seconds_per_video / len(self.workers)


def queue_stats(redis: Redis, store: JobStore, model: str) -> QueueStats:
    queue = generate_queue(redis, model)
    finished = store.recent_durations(model)
    return QueueStats(
        model=model,
        queued=queue.count,
        running=_running(queue),
        workers=_workers(redis, store, queue),
        videos_per_hour=round(_per_hour([at for at, _ in finished], time.time()), 2),
        seconds_per_video=sum(seconds for _, seconds in finished) / len(finished) if finished else None,
    )


def _running(queue: Queue) -> int:
    redis: Any = queue.connection
    # The registry's own count would clean up first, which is not for a reader to do.
    return redis.zcard(StartedJobRegistry(queue=queue).key)


def _workers(redis: Redis, store: JobStore, queue: Queue) -> tuple[WorkerStats, ...]:
    kind: Any = Worker  # rq is typed in part
    found: list[Any] = kind.all(connection=redis, queue=queue, serializer="json")
    return tuple(
        WorkerStats(
            name=worker.name,
            state=str(worker.get_state()),
            last_seen=_seconds(worker.last_heartbeat),
            job=store.get(job_id) if (job_id := worker.get_current_job_id()) else None,
        )
        for worker in sorted(found, key=lambda worker: worker.name)
    )


def _per_hour(finished: list[float], now: float) -> float:
    """Of the last hour; of a shorter time if more were finished than the store remembers."""
    lately = [at for at in finished if now - at < HOUR_S]
    if len(lately) < len(finished) or len(lately) < JobStore.REMEMBERED:
        return float(len(lately))
    return len(lately) * HOUR_S / max(1.0, now - min(lately))


def _seconds(at: datetime | None) -> float | None:
    return None if at is None else (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
