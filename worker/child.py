"""The child's main loop: load the models once, then turn one generation after another into stored files.

Talks to its parent only, over one pipe; knows nothing of Redis, RQ or HTTP, and of the engine only what it is asked
for. Signals are the parent's business.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from service import places
from service.errors import StorageError, UnstorableFile
from service.jobs import Generation, Phase
from service.lifeline import watch_parent
from service.logs import about, configure_logs
from service.metrics import MeasuredStorage, StorageCall
from service.registry import ModelRegistry
from service.settings import Settings
from service.storage import Patience
from service.wiring import open_storage
from worker.delivery import Delivery
from worker.keeper import Keeper, State
from worker.messages import Cancel, Done, Drain, Failed, Message, Progress, Ready, Run, Stopped
from worker.scratch import Scratch

log = logging.getLogger("ivmix.child")

UNKNOWN = "The video could not be made; the server's log says why."
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, or the process's own limit is used up


class Product(Protocol):
    """Frames (F, H, W, 3) uint8, anything numpy can see, and how long each phase took, in seconds."""

    @property
    def frames(self) -> Any: ...  # Any: a tensor of an engine that may not be loaded here
    @property
    def timings(self) -> Mapping[str, float]: ...


class Producer(Protocol):
    """What the child needs of an engine."""

    def generate(
        self,
        generation: Generation,
        on_progress: Callable[[Phase, int, int], None],
        *,
        on_step: Callable[[State], None],
        resume: Path | None,
    ) -> Product: ...

    def failure(self, e: Exception) -> Failed: ...
    def peak_memory_mb(self) -> float: ...


class _StopAsked(Exception):
    """The parent wants the job stopped between two steps."""


def main(connection: Connection, parent: int, settings: Settings, model: str) -> None:
    def load() -> Producer:
        from worker.engine import Engine  # here: it loads torch, which an engine of one's own may do without

        return Engine(ModelRegistry.of(settings).get(model))

    serve(connection, parent, settings, load)


def serve(connection: Connection, parent: int, settings: Settings, load: Callable[[], Producer]) -> None:
    """Until the pipe closes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    configure_logs(settings.log_format)
    watch_parent(parent, lambda: os._exit(71))  # a child whose parent was killed would hold the GPU for ever
    began = time.monotonic()
    engine, line = load(), Line(connection)
    storage = MeasuredStorage(open_storage(settings), line.note)
    delivery = Delivery(storage, Scratch(settings.scratch_folder), Patience(settings.storage_retry_s))
    line.send(Ready(seconds=time.monotonic() - began))
    while True:
        try:
            message = line.receive()
        except (EOFError, OSError):  # the parent is gone, or done with us
            return
        if isinstance(message, Run):
            keeper = Keeper(storage, places.checkpoint(message.job.id), every_s=settings.checkpoint_s)
            with about(video_id=message.job.id, execution_id=message.execution_id):
                line.send(_run(engine, delivery, keeper, line, message))
        # A Cancel or Drain that comes after its job has ended means nothing any more.


class Line:
    """The pipe to the parent. What threads have to say waits until the main one speaks: a pipe has one writer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._notes: deque[StorageCall] = deque()

    def note(self, call: StorageCall) -> None:
        self._notes.append(call)

    def send(self, message: Message) -> None:
        while self._notes:
            self._connection.send(self._notes.popleft())
        self._connection.send(message)

    def receive(self) -> object:
        return self._connection.recv()

    def has_word(self) -> bool:
        return self._connection.poll()


def _run(engine: Producer, delivery: Delivery, keeper: Keeper, line: Line, run: Run) -> Done | Failed | Stopped:
    def report(phase: Phase, step: int, total: int) -> None:
        line.send(Progress(phase, step, total))
        while line.has_word():
            match line.receive():
                case Cancel(run.execution_id):
                    raise _StopAsked
                case Drain(run.execution_id):
                    keeper.save_now()
                    raise _StopAsked
                case _:
                    pass

    def upload() -> None:
        report(Phase.UPLOADING, run.generation.total_steps, run.generation.total_steps)

    try:
        began = time.perf_counter()
        finished = delivery.find(run.job, run.execution_id, meanwhile=upload)
        if finished is None:
            with tempfile.TemporaryDirectory(prefix="ivmix-") as folder:
                resume = keeper.fetch(Path(folder)) if run.may_resume else None
                clip = engine.generate(run.generation, report, on_step=keeper.offer, resume=resume)
            began = time.perf_counter()
            finished = delivery.deliver(
                run.job,
                run.execution_id,
                np.asarray(clip.frames),
                timings=clip.timings,
                peak_memory_mb=engine.peak_memory_mb(),
                meanwhile=upload,
            )
        timings = {**finished.job.timings, Phase.UPLOADING: time.perf_counter() - began}
        return Done(finished.output, timings, finished.job.peak_memory_mb)
    except _StopAsked:
        return Stopped()
    except UnstorableFile:
        log.exception("the files on scratch were harmed")
        return Failed("internal_error", "The video could not be made; the server's log says why.", can_retry=True)
    except StorageError as e:
        log.error("the storage stayed away: %s", e)
        return Failed("storage_unavailable", "The finished video could not be stored; try again.", can_retry=False)
    except OSError as e:
        if e.errno not in NO_ROOM:
            return engine.failure(e)
        log.exception("the disk is full")  # another worker's may have room
        return Failed("no_space", "The worker's disk is full; try again later.", can_retry=True)
    except Exception as e:
        return engine.failure(e)
    finally:
        keeper.close()
