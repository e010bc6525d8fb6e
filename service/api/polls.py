"""Batches concurrent status polls: those that arrive during one Redis round trip share the next one.

Polls are most of the traffic. One thread and one round trip per poll would double their cost, and `redis.asyncio` with
timeouts and a connection limit takes 30 to 70 % more CPU than this (measured with benchmarks.api_load).
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, Future, Task
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from service.jobs.record_reader import JobWithPosition

BATCH_SIZE = 64  # bounds how long one script blocks Redis

ReadMany = Callable[[Sequence[str]], Sequence[JobWithPosition | ValueError | None]]
Pending = list[tuple[str, Future[JobWithPosition | None]]]


class PollBatcher:
    """Reads job status in batches, one batch at a time per event loop.

    Args:
        read_many: returns one entry per id, in order: the job with its queue position, None if there is no such job,
            or a ValueError that concerns only this id.
    """

    def __init__(self, read_many: ReadMany) -> None:
        self._read_many = read_many
        # A server has one event loop; tests may run several at a time.
        self._loops: WeakKeyDictionary[AbstractEventLoop, tuple[Pending, Task[None]]] = WeakKeyDictionary()

    async def read(self, video_id: str) -> JobWithPosition | None:
        """Raises whatever `read_many` raised, or the ValueError it returned for this id."""
        loop = asyncio.get_running_loop()
        future: Future[JobWithPosition | None] = loop.create_future()
        if loop in self._loops:
            self._loops[loop][0].append((video_id, future))
        else:
            pending: Pending = [(video_id, future)]
            self._loops[loop] = pending, loop.create_task(self._read_pending(loop, pending))
        return await future

    async def _read_pending(self, loop: AbstractEventLoop, pending: Pending) -> None:
        try:
            while pending:
                batch = pending[:BATCH_SIZE]
                del pending[:BATCH_SIZE]
                await self._read_batch(batch)
        finally:
            del self._loops[loop]

    async def _read_batch(self, batch: Pending) -> None:
        results: Sequence[JobWithPosition | Exception | None]
        try:
            results = await run_in_threadpool(self._read_many, [video_id for video_id, _ in batch])
        except Exception as e:  # every waiting request gets it
            results = [e] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():  # the client disconnected
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


class DirectRoute(APIRoute):
    """Calls the endpoint without FastAPI's dependency resolution, which adds about a third to the cost of a poll.

    The endpoint must be `async def endpoint(request, **path_params) -> Response`.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in self.methods:
            return await super().handle(scope, receive, send)
        response: Response = await self.endpoint(Request(scope, receive), **scope["path_params"])
        await response(scope, receive, send)
