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
from concurrent.futures import Future, ThreadPoolExecutor, wait
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.errors import PermanentStorageError, StorageError
from service.jobs.model import Generation, Phase
from service.log_config import configure_logging, log_context
from service.process.parent_watch import watch_parent
from service.settings import Settings
from service.storage import StorageRetry, VideoStorage, object_keys
from service.storage.manifest import Manifest
from service.storage.metrics import StorageCall, measured
from service.wiring import open_storage
from worker.child.checkpoint_writer import CheckpointWriter, State
from worker.child.upload import Uploader
from worker.messages import Cancel, Done, Drain, Failed, Message, Progress, Ready, Run, Sampled, Stopped
from worker.scratch import Scratch

if TYPE_CHECKING:
    from worker.child.engine import Engine

log = logging.getLogger("ivmix.child")

T = TypeVar("T")

LOOK_S = 0.5  # how often a job that waits for the one before it asks whether to stop
UNKNOWN = "The video could not be made; the server's log says why."
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, or the process's own limit is used up


class Product(Protocol):
    """Frames (F, H, W, 3) uint8, anything numpy can see, and how long each phase took, in seconds."""

    @property
    def frames(self) -> Any: ...  # Any: a tensor of an engine that may not be loaded here
    @property
    def timings(self) -> Mapping[str, float]: ...


OnProgress = Callable[[Phase, int, int], None]


class Producer(Protocol):
    """What the child needs of an engine. What `sample` gives is for `decode`, which is called in another thread."""

    def sample(
        self,
        generation: Generation,
        on_progress: OnProgress,
        *,
        on_step: Callable[[State], None],
        resume: Path | None,
    ) -> Any: ...

    def decode(self, sampled: Any, on_progress: OnProgress) -> Product: ...
    def failure(self, e: Exception) -> Failed: ...
    def peak_memory_mb(self) -> float: ...


class _StopAsked(Exception):
    """The parent wants the job stopped between two steps."""


def main(first: Connection, second: Connection, parent: int, settings: Settings, model: str) -> None:
    def load() -> Producer:
        from worker.child.engine import Engine  # here: it loads torch, which an engine of one's own may do without

        entry = ModelRegistry.of(settings).get(model)
        engine = Engine(entry)
        _warm_up(engine, entry)
        return engine

    serve(first, second, parent, settings, load)


def serve(first: Connection, second: Connection, parent: int, settings: Settings, load: Callable[[], Producer]) -> None:
    """Until the first line closes. On it a job is sampled; on the second one it is decoded and stored, while the
    networks have the next."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    configure_logging(settings.log_format)
    watch_parent(parent, lambda: os._exit(71))  # a child whose parent was killed would hold the GPU for ever
    began = time.monotonic()
    engine, line, other = load(), ParentChannel(first), ParentChannel(second)
    storage = measured(open_storage(settings), line.note)
    delivery = _delivery(settings, storage)
    finisher = Postprocessor(engine, other, _delivery(settings, measured(open_storage(settings), other.note)))
    line.send(Ready(seconds=time.monotonic() - began))
    while True:
        try:
            message = line.receive()
        except (EOFError, OSError):  # the parent is gone, or done with us
            return
        if isinstance(message, Run):
            keeper = CheckpointWriter(storage, object_keys.checkpoint(message.job.id), every_s=settings.checkpoint_s)
            with log_context(video_id=message.job.id, execution_id=message.execution_id):
                line.send(_run(engine, delivery, keeper, finisher, line, message))
        # A Cancel or Drain that comes after its job has ended means nothing any more.


class ParentChannel:
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


class Reporter:
    """Tells the parent of progress, and raises when the parent wants the job stopped."""

    def __init__(self, line: ParentChannel, run: Run, keeper: CheckpointWriter) -> None:
        self._line, self._run, self._keeper = line, run, keeper

    def __call__(self, phase: Phase, step: int, total: int) -> None:
        self._line.send(Progress(phase, step, total))
        while self._line.has_word():
            match self._line.receive():
                case Cancel(self._run.execution_id):
                    raise _StopAsked
                case Drain(self._run.execution_id):
                    self._keeper.save_now()
                    raise _StopAsked
                case _:
                    pass

    def decoding(self) -> None:
        self._after_steps(Phase.DECODING)

    def uploading(self) -> None:
        self._after_steps(Phase.UPLOADING)

    def _after_steps(self, phase: Phase) -> None:
        total = self._run.generation.total_steps
        self(phase, total, total)


class Postprocessor:
    """Decodes and stores one clip in a thread of its own, and says on the second line how that went."""

    def __init__(self, engine: Producer, line: ParentChannel, delivery: Uploader) -> None:
        self._engine, self._line, self._delivery = engine, line, delivery
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="finisher")
        self._job: Future[None] | None = None

    def is_free(self, timeout_s: float) -> bool:
        """Waits so long for it."""
        return self._job is None or not wait([self._job], timeout_s).not_done

    def begin(self, run: Run, sampled: Any, keeper: CheckpointWriter) -> None:
        """The keeper is closed when the job is over."""

        def work() -> None:
            with log_context(video_id=run.job.id, execution_id=run.execution_id):
                self._line.send(_guarded(self._engine, keeper, lambda: self._finish(run, sampled, keeper)))

        self._job = self._thread.submit(work)

    def _finish(self, run: Run, sampled: Any, keeper: CheckpointWriter) -> Done:
        report = Reporter(self._line, run, keeper)
        clip = self._engine.decode(sampled, report)
        began = time.perf_counter()
        stored = self._delivery.deliver(
            run.job,
            run.execution_id,
            np.asarray(clip.frames),
            timings=clip.timings,
            peak_memory_mb=self._engine.peak_memory_mb(),
            on_wait=report.uploading,
        )
        return _done(stored, began)


def _delivery(settings: Settings, storage: VideoStorage) -> Uploader:
    return Uploader(storage, Scratch(settings.scratch_folder), StorageRetry(settings.storage_retry_s))


def _run(
    engine: Producer,
    delivery: Uploader,
    keeper: CheckpointWriter,
    finisher: Postprocessor,
    line: ParentChannel,
    run: Run,
) -> Done | Failed | Stopped | Sampled:
    report = Reporter(line, run, keeper)

    def sample() -> Done | Sampled:
        began = time.perf_counter()
        finished = delivery.find(run.job, run.execution_id, on_wait=report.uploading)
        if finished is not None:
            return _done(finished, began)
        with tempfile.TemporaryDirectory(prefix="ivmix-") as folder:
            resume = keeper.fetch(Path(folder)) if run.may_resume else None
            sampled = engine.sample(run.generation, report, on_step=keeper.offer, resume=resume)
        while not finisher.is_free(LOOK_S):
            report.decoding()  # not silent, and to be stopped like at any other time
        finisher.begin(run, sampled, keeper)
        return Sampled(run.execution_id)

    return _guarded(engine, keeper, sample)


def _done(stored: Manifest, began: float) -> Done:
    timings = {**stored.job.timings, Phase.UPLOADING: time.perf_counter() - began}
    return Done(stored.output, timings, stored.job.peak_memory_mb)


def _guarded(engine: Producer, keeper: CheckpointWriter, work: Callable[[], T]) -> T | Failed | Stopped:
    """The work's result, or what to say of how it ended. The keeper is closed unless the work goes on elsewhere."""
    goes_on = False
    try:
        answer = work()
        goes_on = isinstance(answer, Sampled)
        return answer
    except _StopAsked:
        return Stopped()
    except PermanentStorageError:
        log.exception("the files on scratch were harmed")
        return Failed("internal_error", UNKNOWN, can_retry=True)
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
        if not goes_on:
            keeper.close()


def _warm_up(engine: Engine, entry: ModelEntry) -> None:
    """With what most jobs will ask for. A worker that cannot do that says so, and may be able to do smaller ones."""
    began = time.monotonic()
    try:
        engine.warm_up(entry.default_generation)
        log.info("warmed up in %.1f s", time.monotonic() - began)
    except Exception:
        log.exception("the default clip of %s cannot be made here", entry.id)
