"""POST /v1/videos/cancel: cancel many videos, by id or by condition."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Depends

from service.api.auth import ServicesDep, Writer, get_writer
from service.api.json_body import read_json_body
from service.api.openapi.responses import errors, json_body, success
from service.api.schemas import MOST_TO_CANCEL, CancelledVideo, CancelledVideos, CancelRequest
from service.api.visible_jobs import audited, get_own_job
from service.errors import NotAllowed, VideoNotFound
from service.jobs.job_list import JobFilter
from service.jobs.model import JobState
from service.wire.video import STATUS
from service.wiring import Services

log = logging.getLogger("ivmix.api")
router = APIRouter(prefix="/v1", tags=["videos"])


@router.post(
    "/videos/cancel",
    summary="Cancel many videos",
    description=f"By their ids, or the oldest {MOST_TO_CANCEL} that meet conditions. Idempotent.",
    responses=success("CancelledVideos") | errors(400, 413, 415),
    openapi_extra=json_body(CancelRequest, "CancelVideos", "CancelQueuedVideos"),
)
def cancel_videos(
    writer: Writer,
    body: Annotated[CancelRequest, Depends(read_json_body(CancelRequest, get_writer))],
    services: ServicesDep,
) -> CancelledVideos:
    ids, has_more = list(dict.fromkeys(body.ids or ())), False
    if body.ids is None:
        jobs, has_more = services.store.lists.page(
            _filter(body, writer.owner, services), limit=MOST_TO_CANCEL, order="asc"
        )
        ids = [job.id for job in jobs]
    cancelled = [_cancel(services, writer, video_id) for video_id in ids]
    log.info("cancel requested for %d videos", len(cancelled))
    return CancelledVideos(data=cancelled, has_more=has_more)


def _filter(body: CancelRequest, owner: str, services: Services) -> JobFilter:
    unended = (JobState.QUEUED, JobState.RUNNING)
    return JobFilter(
        owner=owner,
        model=services.models.real_name(body.model) if body.model else None,
        states=frozenset(state for state in unended if body.status in (None, STATUS[state])),
        metadata=body.metadata or {},
        created_before=body.created_before,
    )


def _cancel(services: Services, writer: Writer, video_id: str) -> CancelledVideo:
    try:
        before = get_own_job(services, writer, video_id)
        with audited(services, writer, "video.cancelled", before):
            job = services.store.cancel(before.id)
    except (VideoNotFound, NotAllowed):  # the others are cancelled all the same
        job = None
    return CancelledVideo(id=video_id, status=STATUS[job.state] if job else "not_found")
