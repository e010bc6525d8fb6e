"""What all streams of Server-Sent Events share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi.sse import EventSourceResponse

from service.jobs.model import Job, JobState

POLL_INTERVAL_S = 0.5  # after which a stream notices that its key was revoked or the server stops
KEEPALIVE_INTERVAL_S = 15.0  # many proxies close connections that are silent for a minute
MAX_DURATION_S = 3600.0  # then the client reconnects
RETRY_MS = 2000


class StreamResponse(EventSourceResponse):
    """Holds its slot while it is sent, also if a client disconnects before the first byte and starts no generator."""

    def __init__(self, content: AsyncIterator[bytes], slot: AbstractAsyncContextManager[None]) -> None:
        super().__init__(content, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._slot = slot

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with self._slot:
            await super().__call__(scope, receive, send)


def event_name(job: Job) -> str:
    if not job.state.is_terminal:
        return "video.progress"
    return "video.completed" if job.state is JobState.COMPLETED else "video.failed"
