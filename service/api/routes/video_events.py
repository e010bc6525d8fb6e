"""GET /v1/videos/{id}/events: the progress of a video as Server-Sent Events.

Every event holds the whole video, so a client that reconnects with Last-Event-ID needs only the current state.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Header, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from service.api import sse
from service.api.auth import Reader, ServicesDep, get_reader
from service.api.open_requests import OpenRequests
from service.api.openapi.responses import errors, example_refs, ref, success
from service.api.visible_jobs import get_job_and_position
from service.errors import NotAllowed, NotAuthenticated, NotFound
from service.jobs.model import Job
from service.wiring import Services

router = APIRouter(prefix="/v1", tags=["videos"])

_EVENT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["event", "id", "retry", "data"],
    "properties": {
        "event": {"enum": ["video.progress", "video.completed", "video.failed"]},
        "id": {"type": "string", "description": "Send it as Last-Event-ID when reconnecting"},
        "retry": {"const": sse.RETRY_MS},
        "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": ref("schemas", "Video")},
    },
}
_EVENT_STREAM = {"text/event-stream": {"schema": _EVENT_SCHEMA, "examples": example_refs("ProgressEvent")}}


@router.get(
    "/videos/{video_id}/events",
    summary="Stream the progress of a video",
    response_class=Response,
    responses=success(
        description="Events until the video has ended; their `data` is the Video as JSON",
        headers=("cache-control",),
        content=_EVENT_STREAM,
    )
    | success(description="The video has ended, and Last-Event-ID was its last event", status=204)
    | errors(400, 404, 429),
)
async def follow_video(
    request: Request,
    video_id: str,
    reader: Reader,
    services: ServicesDep,
    last_event_id: Annotated[
        Annotated[str, Field(max_length=128)] | SkipJsonSchema[None], Header(alias="Last-Event-ID")
    ] = None,
) -> Response:
    job, position = await run_in_threadpool(get_job_and_position, services, reader, video_id)
    if job.state.is_terminal and event_id(job, position) == last_event_id:
        return Response(status_code=204)  # an EventSource does not reconnect after it
    open_requests: OpenRequests = request.app.state.open_requests
    slot = open_requests.slot(request, reader.owner)
    return sse.StreamResponse(_events(request, services, video_id, last_event_id), slot)


async def _events(
    request: Request, services: Services, video_id: str, last_event_id: str | None
) -> AsyncIterator[bytes]:
    stopping = request.app.state.open_requests.stopping
    renderer = services.renderer
    last_sent = time.monotonic()
    end = last_sent + sse.MAX_DURATION_S
    while not stopping.is_set() and time.monotonic() < end:
        try:
            reader = await get_reader(request)  # as it is now
            job, position = await run_in_threadpool(get_job_and_position, services, reader, video_id)
        except (NotFound, NotAuthenticated, NotAllowed):
            return  # deleted, or the key has been revoked or lost its scope
        except RedisError:  # try again at the next interval
            await anyio.sleep(sse.POLL_INTERVAL_S)
            continue
        if (current := event_id(job, position)) != last_event_id:
            last_event_id, last_sent = current, time.monotonic()
            video = await run_in_threadpool(renderer.video, job, queue_position=position)  # its URLs need the secret
            yield format_sse_event(
                event=sse.event_name(job), data_str=video.model_dump_json(), id=current, retry=sse.RETRY_MS
            )
        elif time.monotonic() - last_sent > sse.KEEPALIVE_INTERVAL_S:
            last_sent = time.monotonic()
            yield KEEPALIVE_COMMENT
        if job.state.is_terminal:
            return
        await anyio.sleep(sse.POLL_INTERVAL_S)


def event_id(job: Job, position: int | None) -> str:
    """Changes whenever the client would see something new."""
    preview, waiting = job.preview_at or "-", "-" if position is None else position
    return f"{job.state}.{job.attempt}.{job.step}.{job.phase or '-'}.{waiting}.{preview}"
