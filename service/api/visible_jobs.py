"""The jobs that a caller may see and change."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from service.api.auth import Principal
from service.errors import NotAllowed, VideoNotFound
from service.jobs.model import Job
from service.jobs.record_reader import JobWithPosition
from service.wiring import Services


def get_job(services: Services, principal: Principal, video_id: str) -> Job:
    """Raises VideoNotFound, also for a job that the caller cannot see."""
    return get_job_and_position(services, principal, video_id)[0]


def get_job_and_position(services: Services, principal: Principal, video_id: str) -> JobWithPosition:
    """The job and its queue position. Fails a job whose start timeout has passed. Raises VideoNotFound."""
    found = services.store.get_with_position(video_id)
    if found is None or not _is_visible(services, principal, found[0]):
        raise VideoNotFound(video_id)
    if services.store.fail_if_overdue(found[0]):
        return get_job_and_position(services, principal, video_id)
    return found


def get_own_job(services: Services, principal: Principal, video_id: str) -> Job:
    """A job that the caller may change. Raises VideoNotFound or NotAllowed."""
    job = get_job(services, principal, video_id)
    if not principal.may_change(job.owner) and not services.store.is_in_index(job.id, principal.owner):
        raise NotAllowed(f"This API key may see the videos of other keys, but not change them, as '{video_id}'.")
    return job


def audited(services: Services, principal: Principal, action: str, job: Job) -> AbstractContextManager[object]:
    """A context that writes into the audit log if an administrator changes another key's video in it."""
    if job.owner == principal.owner:
        return nullcontext()
    return services.audit.recording(action, job.id, actor=principal.key_id, owner=job.owner)


def _is_visible(services: Services, principal: Principal, job: Job) -> bool:
    owner = principal.visible_owner
    return owner in (None, job.owner) or (not job.owner and services.store.is_in_index(job.id, owner))
