"""GET /v1/videos/{id}/events: a video's progress as server-sent events, until it has ended.

Every event carries the whole video, so nothing is missed by who comes back later: after Last-Event-ID the stream goes
on with the present state, if that is another one.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Header, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from service.api.auth import Principal, Reader, Wired
from service.api.errors import responses
from service.api.open_requests import OpenRequests
from service.api.routes.videos import show
from service.errors import NotFound
from service.jobs.model import Job, JobState
from service.wire.video import Renderer
from service.wiring import Services

LOOK_EVERY_S = 0.5
PING_EVERY_S = 15.0  # proxies end what is silent for a minute
AT_MOST_S = 3600.0  # then the client comes back by itself, and its key is looked at again
RETRY_MS = 2000

router = APIRouter(prefix="/v1", tags=["videos"])

_EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["event", "id", "retry", "data"],
    "properties": {
        "event": {"enum": ["video.progress", "video.completed", "video.failed"]},
        "id": {"type": "string", "description": "to be sent back as Last-Event-ID"},
        "retry": {"const": RETRY_MS},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/Video"},
        },
    },
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events of this form until the video has ended; their `data` is the Video as JSON",
        "content": {"text/event-stream": {"schema": _EVENT}},
    },
    204: {"description": "The event of Last-Event-ID was the last one"},
}


class Stream(EventSourceResponse):
    """Leaves its slot however it ends: a client that goes away before the first byte starts no generator."""

    def __init__(self, content: AsyncIterator[bytes], held: OpenRequests) -> None:
        super().__init__(content, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._held = held

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._held.leave()


@router.get(
    "/videos/{video_id}/events",
    summary="Follow a video",
    response_class=Response,
    responses=_STREAM | responses(400, 401, 403, 404, 429),
)
async def follow_video(
    request: Request,
    video_id: str,
    reader: Reader,
    services: Wired,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", max_length=128)] = None,
) -> Response:
    job, position = await run_in_threadpool(show, services, reader, video_id)
    if job.state.is_terminal and event_id(job, position) == last_event_id:
        return Response(status_code=204)  # tells an EventSource not to come back
    held: OpenRequests = request.app.state.held
    held.enter()
    return Stream(_events(services, reader, video_id, last_event_id, held), held)


async def _events(
    services: Services, reader: Principal, video_id: str, last_event_id: str | None, held: OpenRequests
) -> AsyncIterator[bytes]:
    renderer = Renderer(services.settings, services.storage)
    said = time.monotonic()
    end = said + AT_MOST_S
    while not held.stopping.is_set() and time.monotonic() < end:
        try:
            job, position = await run_in_threadpool(show, services, reader, video_id)
        except NotFound:
            return  # deleted on_wait
        except RedisError:  # the next look may find it again
            await anyio.sleep(LOOK_EVERY_S)
            continue
        if (now := event_id(job, position)) != last_event_id:
            last_event_id, said = now, time.monotonic()
            video = renderer.video(job, queue_position=position).model_dump_json()
            yield format_sse_event(event=_name(job), data_str=video, id=now, retry=RETRY_MS)
        elif time.monotonic() - said > PING_EVERY_S:
            said = time.monotonic()
            yield KEEPALIVE_COMMENT
        if job.state.is_terminal:
            return
        await anyio.sleep(LOOK_EVERY_S)


def event_id(job: Job, position: int | None) -> str:
    """Another one whenever a client would see something new."""
    return f"{job.state}.{job.attempt}.{job.step}.{job.phase or '-'}.{'-' if position is None else position}"


def _name(job: Job) -> str:
    if not job.state.is_terminal:
        return "video.progress"
    return "video.completed" if job.state is JobState.COMPLETED else "video.failed"
