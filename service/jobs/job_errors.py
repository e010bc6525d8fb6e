"""Errors that more than one process writes into a job's record."""

from __future__ import annotations

from service.jobs.model import JobError

RECORD_DAMAGED = JobError(code="internal_error", message="The record of this job is damaged; see the server's log.")
START_TIMEOUT = JobError(code="start_timeout", message="No worker was free within start_timeout_s.")
WORKER_LOST = JobError(code="worker_lost", message="The worker process died several times on this job.")
