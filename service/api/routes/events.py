"""GET /v1/events: all videos of the caller and the queue as Server-Sent Events, for pages."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.sse import format_sse_event
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from service.api import sse
from service.api.auth import Reader, get_reader
from service.api.event_hub import EventHub
from service.api.event_subscription import Subscription
from service.api.open_requests import OpenRequests
from service.api.openapi.responses import errors, example_refs, ref, success
from service.api.queue_snapshot import Audience
from service.errors import NotAllowed, NotAuthenticated

router = APIRouter(prefix="/v1", tags=["videos"])

ENTRY_PATTERN = r"^\d{1,19}-\d{1,19}$"

_EVENT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {
            "enum": [
                "video.created",
                "video.progress",
                "video.completed",
                "video.failed",
                "video.deleted",
                "queue",
                "reset",
            ]
        },
        "id": {"type": "string", "pattern": ENTRY_PATTERN, "description": "Send it as Last-Event-ID when reconnecting"},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {
                "anyOf": [
                    ref("schemas", "Video"),
                    ref("schemas", "DeletedVideo"),
                    ref("schemas", "QueueReport"),
                    {"type": "object", "maxProperties": 0},
                ]
            },
        },
    },
}
_EXAMPLES = example_refs("VideoEvent", "DeletedEvent", "QueueEvent", "ResetEvent")


@router.get(
    "/events",
    summary="Stream all videos and the queue",
    description="One connection keeps a page up to date. `video.created`, `video.progress`, `video.completed` and "
    "`video.failed` hold the Video (`queue_position` is null), `video.deleted` its id; of several changes of a video "
    "within half a second only the last one is sent. `queue` holds the body of `GET /v1/queue`: at the beginning, and "
    "when it changes. `reset` means that events were missed: read the lists again. Load them after the connection is "
    "open, so that nothing is missed in between.",
    response_class=Response,
    responses=success(
        description="Events of the videos that the caller can read, until the client disconnects",
        headers=("cache-control",),
        content={"text/event-stream": {"schema": _EVENT_SCHEMA, "examples": _EXAMPLES}},
    )
    | errors(400, 429),
)
async def follow_all(
    request: Request,
    reader: Reader,
    last_event_id: Annotated[
        Annotated[str, Field(pattern=ENTRY_PATTERN)] | SkipJsonSchema[None], Header(alias="Last-Event-ID")
    ] = None,
) -> Response:
    subscription = Subscription(Audience.of(reader), last_event_id)
    return sse.StreamResponse(_events(request, subscription), _subscribed(request, subscription))


@asynccontextmanager
async def _subscribed(request: Request, subscription: Subscription) -> AsyncGenerator[None]:
    open_requests: OpenRequests = request.app.state.open_requests
    hub: EventHub = request.app.state.event_hub
    async with open_requests.slot(request, subscription.audience.owner):
        try:
            await run_in_threadpool(hub.subscribe, subscription)
            yield
        finally:
            hub.unsubscribe(subscription)


async def _events(request: Request, subscription: Subscription) -> AsyncIterator[bytes]:
    stopping = request.app.state.open_requests.stopping
    yield format_sse_event(retry=sse.RETRY_MS) + subscription.idle_message()
    last_sent = time.monotonic()
    end = last_sent + sse.MAX_DURATION_S
    while not stopping.is_set() and time.monotonic() < end and await _may_go_on(request, subscription):
        if data := subscription.take():
            yield data
            last_sent = time.monotonic()
        elif time.monotonic() - last_sent > sse.KEEPALIVE_INTERVAL_S:
            yield subscription.idle_message()
            last_sent = time.monotonic()
        await subscription.wait(sse.POLL_INTERVAL_S)


async def _may_go_on(request: Request, subscription: Subscription) -> bool:
    """Whether the key is still valid and sees the same; a client whose scopes have changed connects again."""
    try:
        return Audience.of(await get_reader(request)) == subscription.audience
    except (NotAuthenticated, NotAllowed):
        return False
    except RedisError:  # the next look decides
        return True
