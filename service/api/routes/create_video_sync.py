"""POST /v1/videos/sync: create, wait, and answer with the film itself. For scripts; bounded in time and number."""

from __future__ import annotations

import logging
import time
from typing import Any

import anyio
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from service.api.auth import Wired
from service.api.errors import responses
from service.api.open_requests import OpenRequests
from service.api.routes.create_video import REFUSALS, Creator, IdempotencyKey, Wanted, submit
from service.errors import SyncRequestFailed, VideoExpired
from service.jobs.model import Job, JobState
from service.wire.video import file_name
from service.wiring import Services

LOOK_EVERY_S = 0.25

log = logging.getLogger("ivmix.api")
router = APIRouter(prefix="/v1", tags=["videos"])

_VIDEO_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The film",
        "content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "/videos/sync",
    summary="Create a video and wait for it",
    response_class=Response,
    responses=_VIDEO_RESPONSE | REFUSALS | responses(404, 504),
)
async def create_video_sync(
    request: Request, creator: Creator, wanted: Wanted, services: Wired, idempotency_key: IdempotencyKey = None
) -> Response:
    """A client that goes away cancels its video, unless it named the request with an Idempotency-Key and so may come
    back for it. After the server's `sync_timeout_s` the answer is 504 with the id, and the video goes on."""
    held: OpenRequests = request.app.state.held
    with held.slot():
        told = Response()
        job = await run_in_threadpool(submit, services, creator, wanted, idempotency_key, told)
        job = await _ended(services, job, request, held, cancel_if_left=idempotency_key is None)
    replayed = {name: value for name, value in told.headers.items() if name == "idempotent-replayed"}
    return await run_in_threadpool(_video_response, services, job, {"x-video-id": job.id} | replayed)


async def _ended(services: Services, job: Job, request: Request, held: OpenRequests, *, cancel_if_left: bool) -> Job:
    """Raises SyncRequestFailed when it does not come in time."""
    deadline = time.monotonic() + services.settings.sync_timeout_s
    while not job.state.is_terminal:
        if time.monotonic() > deadline or held.stopping.is_set():
            message = f"The video '{job.id}' is still {job.state}; ask for it at /v1/videos/{job.id}."
            raise SyncRequestFailed(job.id, "sync_timeout", message)
        if cancel_if_left and await request.is_disconnected():
            log.info("%s cancelled: its client went away", job.id)
            await run_in_threadpool(services.store.cancel, job.id)
            raise SyncRequestFailed(job.id, "cancelled", "The client went away.")
        await anyio.sleep(LOOK_EVERY_S)
        try:
            job = await run_in_threadpool(_look, services, job)
        except RedisError:  # the next look may find it again
            continue
    return job


def _look(services: Services, job: Job) -> Job:
    now = services.store.get(job.id)
    if now is None:
        raise SyncRequestFailed(job.id, "cancelled", f"The video '{job.id}' was deleted.")
    return (services.store.get(job.id) or now) if services.store.give_up_overdue(now) else now


def _video_response(services: Services, job: Job, headers: dict[str, str]) -> Response:
    if job.output is None:
        reason = "cancelled" if job.state is JobState.CANCELLED else job.error.code if job.error else "internal_error"
        raise SyncRequestFailed(
            job.id, reason, job.error.message if job.error else f"The video '{job.id}' was cancelled."
        )
    size = services.storage.size(job.output.key)
    if size is None:
        raise VideoExpired(f"The video of '{job.id}' is not stored any more.")
    name = file_name(job, "video", job.output.media_type)
    headers |= {"content-length": str(size), "content-disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(services.storage.open(job.output.key), 200, headers, job.output.media_type)
