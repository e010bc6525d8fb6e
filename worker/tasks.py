"""The function that RQ calls by dotted name in the parent. `install` sets its runner and worker first."""

from __future__ import annotations

from rq import get_current_job

from worker.parent.job_runner import Runner
from worker.parent.rq_worker import GenerationWorker

_installed: tuple[Runner, GenerationWorker] | None = None


def install(runner: Runner, worker: GenerationWorker) -> None:
    global _installed
    _installed = runner, worker


def generate(job_id: str) -> bool:
    """Run one job. Returns whether RQ's entry can be deleted."""
    job = get_current_job()
    if _installed is None or job is None:
        raise RuntimeError("worker.tasks.generate runs inside `ivmix worker` only")
    runner, worker = _installed
    return runner.run(
        job_id,
        worker.execution_id,
        on_beat=lambda: worker.beat(job),
        is_draining=lambda: worker.is_draining,
        on_finished=lambda: worker.close_entry(job),
    )
