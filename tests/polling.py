"""Status polls without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from service.api.polls import PollReader
from service.jobs.model import Job
from service.wiring import Services


@asynccontextmanager
async def poll_reader(services: Services) -> AsyncGenerator[PollReader]:
    reader = PollReader(services)
    async with reader.lifespan(None):
        yield reader


def polled(services: Services, video_id: str) -> Job | None:
    """The job as a poll reads it."""

    async def read() -> Job | None:
        async with poll_reader(services) as reader:
            found = await reader.read(video_id)
        return found and found[0]

    return asyncio.run(read())
