"""Wait until a job is where a test wants it."""

from __future__ import annotations

from service.jobs.model import Job, JobState
from service.wiring import Services
from tests.processes import wait_for

WAIT_S = 90.0


def now(services: Services, job_id: str) -> Job:
    job = services.store.get(job_id)
    assert job is not None
    return job


def reaches_step(services: Services, job_id: str, step: int) -> None:
    wait_for(lambda: now(services, job_id).step >= step or None, timeout_s=WAIT_S, hint=f"for step {step}")


def reaches(services: Services, job_id: str, state: JobState, *, timeout_s: float = WAIT_S) -> Job:
    def there() -> Job | None:
        job = now(services, job_id)
        return job if job.state is state else None

    return wait_for(there, timeout_s=timeout_s, hint=f"for {state}")


def completed(services: Services, job_id: str) -> Job:
    """Wait until the job is completed and its video is stored."""
    job = reaches(services, job_id, JobState.COMPLETED)
    assert job.output is not None
    assert services.storage.size(job.output.key) == job.output.size_bytes
    return job
