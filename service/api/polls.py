"""Status polls, most of the traffic: those that arrive together are looked up together.

One look-up is under way at a time; what arrives on_wait is in the next one. So an idle server answers at once, and a
busy one goes to a thread and to Redis once for many.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, Future, Task
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

from starlette.concurrency import run_in_threadpool
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service.jobs.store import Shown

AT_ONCE = 64  # so that one script does not hold Redis for long

LookUp = Callable[[Sequence[str]], Sequence[Shown | ValueError | None]]


class Polls:
    """A server has one event loop; tests may have several at a time, and each has a lane of its own."""

    def __init__(self, look_up: LookUp) -> None:
        self._look_up = look_up
        self._lanes: WeakKeyDictionary[AbstractEventLoop, _Lane] = WeakKeyDictionary()

    async def show(self, video_id: str) -> Shown | None:
        """Raises what the look-up raised."""
        loop = asyncio.get_running_loop()
        lane = self._lanes.get(loop)
        if lane is None:
            lane = self._lanes[loop] = _Lane(self._look_up)
        return await lane.join(video_id, loop)


class PollRoute(Route):
    """Leaves its name where FastAPI's routes do, for those who count requests."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self
        await super().handle(scope, receive, send)


class _Lane:
    def __init__(self, look_up: LookUp) -> None:
        self._look_up = look_up
        self._waiting: list[tuple[str, Future[Shown | None]]] = []
        self._task: Task[None] | None = None

    def join(self, video_id: str, loop: AbstractEventLoop) -> Future[Shown | None]:
        future: Future[Shown | None] = loop.create_future()
        self._waiting.append((video_id, future))
        if self._task is None:
            self._task = loop.create_task(self._run())
        return future

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
            try:
                found = await run_in_threadpool(self._look_up, [video_id for video_id, _ in batch])
            except Exception as e:  # theirs who asked
                for _, future in batch:
                    if not future.done():
                        future.set_exception(e)
                continue
            for (_, future), shown in zip(batch, found, strict=True):
                if future.done():  # its client went away
                    continue
                if isinstance(shown, ValueError):
                    future.set_exception(shown)
                else:
                    future.set_result(shown)
        self._task = None
