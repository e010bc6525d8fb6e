"""What RQ calls by name in the parent. `install` is told once, at start, who does the work."""

from __future__ import annotations

from rq import Retry, get_current_job

from worker.rq_worker import ResidentWorker
from worker.runner import Ending, Runner

_installed: tuple[Runner, ResidentWorker] | None = None


def install(runner: Runner, worker: ResidentWorker) -> None:
    global _installed
    _installed = runner, worker


def generate(job_id: str) -> Retry | None:
    """Run one job. A returned Retry puts it back at the front without charging RQ's own retries."""
    job = get_current_job()
    if _installed is None or job is None:
        raise RuntimeError("worker.tasks.generate runs inside `ivmix worker` only")
    runner, worker = _installed
    ending = runner.run(
        job_id, worker.execution_id, beat=lambda: worker.beat(job), is_draining=lambda: worker.is_draining
    )
    return Retry(max=1_000_000, interval=0, enqueue_at_front=True) if ending is Ending.AGAIN else None
