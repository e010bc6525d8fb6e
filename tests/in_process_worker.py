"""A worker in a thread, without a model: takes queued jobs, reports steps at a fixed pace and stores a video."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.jobs.model import Job, JobState, Phase
from service.jobs.store import LeaseReply
from service.wiring import Services
from tests.factories import finish

VIDEO = b"video"


@contextmanager
def replaying(
    services: Services, *, step_s: float = 0.002, steps: int = 4, preview: bytes | None = None
) -> Iterator[None]:
    """`preview`: a WebP file that every step reports."""
    stop = threading.Event()
    thread = threading.Thread(target=_work, args=(services, stop, step_s, steps, preview))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


def _work(services: Services, stop: threading.Event, step_s: float, steps: int, preview: bytes | None) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        while not stop.is_set():
            waiting = [job for job in services.store.list(limit=100)[0] if job.state is JobState.QUEUED]
            for job in reversed(waiting):
                _run(services, job, stop, step_s, steps, Path(scratch), preview)
            stop.wait(step_s)


def _run(
    services: Services,
    job: Job,
    stop: threading.Event,
    step_s: float,
    steps: int,
    scratch: Path,
    preview: bytes | None,
) -> None:
    if services.store.start(job.id, "execution") is None:
        return
    services.redis.lrem(f"rq:queue:gpu-{job.generation.model}", 1, job.id)  # as RQ does when it hands a job out
    for step in range(1, steps + 1):
        stop.wait(step_s)
        progress = (step, steps, Phase.SAMPLING, preview)
        if services.store.report_progress(job.id, "execution", *progress) is not LeaseReply.CONTINUE:
            services.store.finish_cancel(job.id, "execution")
            return
    finish(services, job.id, VIDEO, scratch=scratch)
