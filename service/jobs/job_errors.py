"""Errors that more than one process writes into a job's record."""

from __future__ import annotations

from service.errors import ModelUnavailable
from service.jobs.model import JobError

RECORD_DAMAGED = JobError(
    code="record_damaged",
    message="The stored record of this video is damaged, so it cannot be generated or shown in full. "
    "Delete it and create it again.",
)
START_TIMEOUT = JobError(code="start_timeout", message="No worker was free within start_timeout_s.")
WORKER_LOST = JobError(code="worker_lost", message="The worker process died several times on this job.")


def model_unavailable(model: str, reason: str) -> JobError:
    """Why a queued job fails if no worker can load its model."""
    return JobError(code=ModelUnavailable.code, message=ModelUnavailable(model, reason).message)
