"""Status polls: one asynchronous read of Redis, shared by those that arrive together.

Polls are most of the traffic. A command per poll would take as much time as all the rest (benchmarks.api_load).
"""

from __future__ import annotations

import asyncio
from asyncio import Task
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import lru_cache

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from service.jobs.keys import job_key
from service.jobs.model import Job
from service.jobs.record_reader import POSITIONS, decode_answer
from service.redis_connection.client import open_async_redis
from service.redis_scripts import load_async_script
from service.wiring import Services

BATCH_SIZE = 64  # bounds how long one script blocks Redis
KEPT = 1000  # videos that need not be decoded and shown again while they do not change

Polled = tuple[Job, int | None, str | None]  # job, queue position, and the Video unless it has URLs, which expire


class PollReader:
    """Reads the jobs of polls over one connection, one batch at a time: those that arrive meanwhile are the next."""

    def __init__(self, services: Services) -> None:
        """Does not connect yet. It belongs to the event loop of its first read."""
        self._renderer = services.renderer
        self._redis = open_async_redis(services.redis_url)
        self._show_known = lru_cache(KEPT)(self._show)
        self._script = load_async_script(self._redis, *POSITIONS)
        self._turn = asyncio.Lock()
        self._ids: list[str] = []  # of the batch that waits for its turn
        self._reading: Task[list[bytes]] | None = None

    async def read(self, video_id: str) -> Polled | None:
        """None: there is no such job, or its record is damaged. Raises RedisError."""
        if self._reading is None or len(self._ids) == BATCH_SIZE:
            self._ids = []
            self._reading = asyncio.create_task(self._read(self._ids))
        at = len(self._ids)
        self._ids.append(video_id)
        answers = await asyncio.shield(self._reading)  # a client that disconnects leaves the others their read
        return self._show_known(video_id, answers[at])

    async def _read(self, ids: list[str]) -> list[bytes]:
        async with self._turn:
            if ids is self._ids:
                self._reading = None
            return await self._script([job_key(video_id) for video_id in ids], [])

    def _show(self, video_id: str, answer: bytes) -> Polled | None:
        try:
            found = decode_answer(video_id, answer)
        except ValueError:
            found = None
        if found is None:
            return None
        job, position = found
        has_urls = job.output is not None or job.preview_at is not None
        return job, position, None if has_urls else self._renderer.video(job, queue_position=position).model_dump_json()

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncGenerator[None]:
        """That of the application, at whose end the connection is closed."""
        yield
        await self._redis.aclose(close_connection_pool=True)


class DirectRoute(APIRoute):
    """Calls the endpoint without FastAPI's dependency resolution, which adds about a third to the cost of a poll.

    The endpoint must be `async def endpoint(request, **path_params) -> Response`.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in self.methods:
            return await super().handle(scope, receive, send)
        response: Response = await self.endpoint(Request(scope, receive), **scope["path_params"])
        await response(scope, receive, send)
