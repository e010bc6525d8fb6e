"""RQ workers as threads: they wait for receivers most of the time, so one process carries many."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker
from rq.exceptions import StopRequested

from service.jobs.rq_queues import WEBHOOKS, NoTimeout, TrustedJob

log = logging.getLogger("ivmix.webhooks")

DEQUEUE_S = 2  # how long an idle worker blocks, so how late it notices a stop
RESTART_S = 1.0


class DeliveryWorker(SimpleWorker):
    """tests/contract/test_rq.py holds the signatures of what is overridden."""

    job_class = TrustedJob
    death_penalty_class = NoTimeout

    def __init__(self, connection: Redis, stopping: threading.Event) -> None:
        self._stopping = stopping
        super().__init__(  # pyright: ignore[reportUnknownMemberType]  RQ is typed in part
            [WEBHOOKS],
            connection=connection,
            serializer="json",
            worker_ttl=DEQUEUE_S + 15,
            queue_class=_stoppable(stopping),
        )
        self.max_connection_wait_time = DEQUEUE_S

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """While Redis is away RQ waits for it before every dequeue, for ever: a worker that is to stop must not."""
        try:
            super().heartbeat(timeout, pipeline)
        except RedisError:
            if self._stopping.is_set():
                raise StopRequested from None
            raise

    def _install_signal_handlers(self) -> None:
        """Signals are the main thread's, and it passes them on."""


def _stoppable(stopping: threading.Event) -> type[Queue]:
    """A queue that asks before every dequeue whether its worker is to stop: the moment when nothing is in its hands."""

    class Stoppable(Queue):
        @classmethod
        def dequeue_any(cls, *args: Any, **kwargs: Any) -> Any:
            if stopping.is_set():
                raise StopRequested
            return super().dequeue_any(*args, **kwargs)

    return Stoppable


def work(connect: Callable[[], Redis], stopping: threading.Event) -> None:
    """Until `stopping`. RQ's loop ends on errors that it does not know, and then begins again."""
    with connect() as redis:
        while not stopping.is_set():
            try:
                DeliveryWorker(redis, stopping).work(logging_level="WARNING")
            except RedisError as e:
                log.error("Redis is away: %s", type(e).__name__)
            stopping.wait(RESTART_S)
