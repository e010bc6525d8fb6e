"""POST /v1/videos/sync: create a video, wait, and respond with the MP4. Bounded in time and number."""

from __future__ import annotations

import logging
import time

import anyio
from fastapi import APIRouter, Request, Response
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from service.api.auth import get_writer
from service.api.file_stream import FileStream
from service.api.open_requests import OpenRequests
from service.api.openapi.responses import FILE, errors, success
from service.api.routes.create_video import CREATE_ERRORS, RequestBody, SubmissionDep, request_body
from service.errors import InvalidParameter, SyncRequestFailed, VideoExpired
from service.jobs.model import Job, JobState
from service.wire.video import file_name
from service.wiring import Services

POLL_INTERVAL_S = 0.25

log = logging.getLogger("ivmix.api")
router = APIRouter(prefix="/v1", tags=["videos"])


@router.post(
    "/videos/sync",
    summary="Create a video and wait for it",
    description="Responds with the MP4. If the client disconnects, the video is cancelled, unless the request has an "
    "Idempotency-Key and can therefore be repeated. After `IVMIX_SYNC_TIMEOUT_S` seconds the response is 504 with the "
    "id of the video, which continues to run.",
    response_class=Response,
    responses=success(
        description="The MP4",
        headers=("x-video-id", "idempotent-replayed", "content-disposition"),
        content={"video/mp4": FILE},
    )
    | CREATE_ERRORS
    | errors(404)
    | errors(400, 500, 503, 504, prefix="Sync"),
    openapi_extra=request_body("PromptOnly", "PromptAndSettings"),
)
async def create_video_sync(submission: SubmissionDep, body: RequestBody) -> Response:
    if (count := body.body.num_videos) is not None:
        message = f"num_videos={count}: this endpoint returns one MP4; leave it out, or use POST /v1/videos."
        raise InvalidParameter("num_videos", message)
    request, services = submission.request, submission.services
    open_requests: OpenRequests = request.app.state.open_requests
    async with open_requests.slot(request, submission.writer.owner):
        jobs = await run_in_threadpool(submission.submit, body)
        body.close()
        job = await _wait(services, jobs[0], request, cancel_on_disconnect=submission.idempotency_key is None)
    headers = {"x-video-id": job.id, **submission.response.headers}
    return await run_in_threadpool(_video_response, services, job, headers)


async def _wait(services: Services, job: Job, request: Request, *, cancel_on_disconnect: bool) -> Job:
    """The job in its terminal state. Raises SyncRequestFailed if it does not end in time."""
    deadline = time.monotonic() + services.settings.sync_timeout_s
    stopping = request.app.state.open_requests.stopping
    while not job.state.is_terminal:
        if time.monotonic() > deadline or stopping.is_set():
            message = f"The video '{job.id}' is still {job.state}; poll /v1/videos/{job.id}."
            raise SyncRequestFailed(job.id, "sync_timeout", message)
        if await request.is_disconnected():
            if cancel_on_disconnect:
                log.info("%s cancelled: its client disconnected", job.id)
                await run_in_threadpool(services.store.cancel, job.id)
            raise SyncRequestFailed(job.id, "cancelled", "The client disconnected.")
        await anyio.sleep(POLL_INTERVAL_S)
        try:
            await get_writer(request)  # raises if the key has been revoked or has lost its scope
            job = await run_in_threadpool(_reload, services, job)
        except RedisError:  # try again until the deadline
            continue
    return job


def _reload(services: Services, job: Job) -> Job:
    current = services.store.view(job.id)
    if current is None:
        raise SyncRequestFailed(job.id, "cancelled", f"The video '{job.id}' was deleted.")
    return (services.store.view(job.id) or current) if services.store.fail_if_overdue(current) else current


def _video_response(services: Services, job: Job, headers: dict[str, str]) -> Response:
    if job.output is None:
        reason = "cancelled" if job.state is JobState.CANCELLED else job.error.code if job.error else "internal_error"
        raise SyncRequestFailed(
            job.id, reason, job.error.message if job.error else f"The video '{job.id}' was cancelled."
        )
    size = services.storage.size(job.output.key)
    if size is None:
        raise VideoExpired(f"The video '{job.id}' is no longer stored.")
    name = file_name(job, "video", job.output.media_type)
    headers |= {"content-length": str(size), "content-disposition": f'attachment; filename="{name}"'}
    headers["content-type"] = job.output.media_type
    return FileStream(services.storage.open(job.output.key), 200, headers)
