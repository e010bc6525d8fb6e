"""The child's main loop: load the models once, then turn one generation after another into stored files.

Two pipes to the parent: one for the job that is sampled, one for the job that is decoded and stored meanwhile.
Independent of Redis, RQ and HTTP. The parent handles signals.
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
from worker.messages import INTERNAL_ERROR, Cancel, Done, Drain, Failed, Message, Progress, Ready, Run, Sampled, Stopped
from worker.scratch import Scratch

if TYPE_CHECKING:
    from worker.child.engine import Engine

log = logging.getLogger("ivmix.child")

T = TypeVar("T")

CANCEL_POLL_S = 0.5  # how often a job that waits for the previous upload checks for cancellation
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, or the process's own limit is used up


class DecodedVideo(Protocol):
    """Frames (F, H, W, 3) uint8, anything numpy can see, and how long each phase took, in seconds."""

    @property
    def frames(self) -> Any: ...  # Any: a tensor of an engine that may not be loaded here
    @property
    def timings(self) -> Mapping[str, float]: ...


OnProgress = Callable[[Phase, int, int], None]


class VideoEngine(Protocol):
    """The engine as the child uses it. `decode` takes the result of `sample` and runs in another thread."""

    def sample(
        self,
        generation: Generation,
        on_progress: OnProgress,
        *,
        on_step: Callable[[State], None],
        resume: Path | None,
    ) -> Any: ...

    def decode(self, sampled: Any, on_progress: OnProgress) -> DecodedVideo: ...
    def failed_message(self, e: Exception) -> Failed: ...
    def peak_memory_mb(self) -> float: ...


class _StopRequested(Exception):
    """The parent sent Cancel or Drain."""


def main(first: Connection, second: Connection, parent: int, settings: Settings, model: str) -> None:
    def load() -> VideoEngine:
        from worker.child.engine import Engine  # imports torch, which a test engine does not need

        entry = ModelRegistry.of(settings).get(model)
        engine = Engine(entry)
        _warm_up(engine, entry)
        return engine

    serve(first, second, parent, settings, load)


def serve(
    first: Connection, second: Connection, parent: int, settings: Settings, load: Callable[[], VideoEngine]
) -> None:
    """Work until the parent closes the first pipe. Jobs are sampled on the first; the second reports decoding and
    upload of one job while the networks sample the next."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    configure_logging(settings.log_format)
    watch_parent(parent, lambda: os._exit(71))  # a child whose parent was killed would hold the GPU forever
    began = time.monotonic()
    engine, channel, other = load(), ParentChannel(first), ParentChannel(second)
    storage = measured(open_storage(settings), channel.note)
    uploader = _open_uploader(settings, storage)
    postprocessor = Postprocessor(engine, other, _open_uploader(settings, measured(open_storage(settings), other.note)))
    channel.send(Ready(seconds=time.monotonic() - began))
    while True:
        try:
            message = channel.receive()
        except (EOFError, OSError):  # the parent is gone, or done with us
            return
        if isinstance(message, Run):
            checkpoint_writer = CheckpointWriter(
                storage, object_keys.checkpoint(message.job.id), every_s=settings.checkpoint_s
            )
            with log_context(video_id=message.job.id, execution_id=message.execution_id):
                channel.send(_run(engine, uploader, checkpoint_writer, postprocessor, channel, message))
        # A Cancel or Drain that arrives after its job has ended is ignored.


class ParentChannel:
    """A pipe to the parent. Storage metrics of other threads wait for the next `send`: a pipe has one writer."""

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

    def has_message(self) -> bool:
        return self._connection.poll()


class ProgressReporter:
    """Sends progress to the parent and raises _StopRequested after a Cancel or Drain."""

    def __init__(self, channel: ParentChannel, run: Run, checkpoint_writer: CheckpointWriter) -> None:
        self._line, self._run, self._keeper = channel, run, checkpoint_writer

    def __call__(self, phase: Phase, step: int, total: int) -> None:
        self._line.send(Progress(phase, step, total))
        while self._line.has_message():
            match self._line.receive():
                case Cancel(self._run.execution_id):
                    raise _StopRequested
                case Drain(self._run.execution_id):
                    self._keeper.save_now()
                    raise _StopRequested
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
    """Decodes and stores one clip in a separate thread and reports the outcome on the second pipe."""

    def __init__(self, engine: VideoEngine, channel: ParentChannel, uploader: Uploader) -> None:
        self._engine, self._line, self._open_uploader = engine, channel, uploader
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="postprocessor")
        self._job: Future[None] | None = None

    def is_free(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` for the current clip."""
        return self._job is None or not wait([self._job], timeout_s).not_done

    def begin(self, run: Run, sampled: Any, checkpoint_writer: CheckpointWriter) -> None:
        """Closes `checkpoint_writer` when the job ends."""

        def work() -> None:
            with log_context(video_id=run.job.id, execution_id=run.execution_id):
                self._line.send(
                    _outcome_of(self._engine, checkpoint_writer, lambda: self._finish(run, sampled, checkpoint_writer))
                )

        self._job = self._thread.submit(work)

    def _finish(self, run: Run, sampled: Any, checkpoint_writer: CheckpointWriter) -> Done:
        reporter = ProgressReporter(self._line, run, checkpoint_writer)
        clip = self._engine.decode(sampled, reporter)
        began = time.perf_counter()
        stored = self._open_uploader.deliver(
            run.job,
            run.execution_id,
            np.asarray(clip.frames),
            timings=clip.timings,
            peak_memory_mb=self._engine.peak_memory_mb(),
            on_wait=reporter.uploading,
        )
        return _done(stored, began)


def _open_uploader(settings: Settings, storage: VideoStorage) -> Uploader:
    return Uploader(storage, Scratch(settings.scratch_folder), StorageRetry(settings.storage_retry_s))


def _run(
    engine: VideoEngine,
    uploader: Uploader,
    checkpoint_writer: CheckpointWriter,
    postprocessor: Postprocessor,
    channel: ParentChannel,
    run: Run,
) -> Done | Failed | Stopped | Sampled:
    reporter = ProgressReporter(channel, run, checkpoint_writer)

    def sample() -> Done | Sampled:
        began = time.perf_counter()
        finished = uploader.find(run.job, run.execution_id, on_wait=reporter.uploading)
        if finished is not None:
            return _done(finished, began)
        with tempfile.TemporaryDirectory(prefix="ivmix-") as folder:
            resume = checkpoint_writer.fetch(Path(folder)) if run.may_resume else None
            sampled = engine.sample(run.generation, reporter, on_step=checkpoint_writer.offer, resume=resume)
        while not postprocessor.is_free(CANCEL_POLL_S):
            reporter.decoding()  # keeps the parent from assuming a hang, and checks for a stop
        postprocessor.begin(run, sampled, checkpoint_writer)
        return Sampled(run.execution_id)

    return _outcome_of(engine, checkpoint_writer, sample)


def _done(stored: Manifest, began: float) -> Done:
    timings = {**stored.job.timings, Phase.UPLOADING: time.perf_counter() - began}
    return Done(stored.output, timings, stored.job.peak_memory_mb)


def _outcome_of(
    engine: VideoEngine, checkpoint_writer: CheckpointWriter, work: Callable[[], T]
) -> T | Failed | Stopped:
    """The result of `work`, or the message for its exception. Closes `checkpoint_writer` unless decoding follows."""
    goes_on = False
    try:
        answer = work()
        goes_on = isinstance(answer, Sampled)
        return answer
    except _StopRequested:
        return Stopped()
    except PermanentStorageError:
        log.exception("files on scratch are corrupt")
        return Failed("internal_error", INTERNAL_ERROR, can_retry=True)
    except StorageError as e:
        log.error("storage unavailable, giving up: %s", e)
        return Failed("storage_unavailable", "The finished video could not be stored; try again.", can_retry=False)
    except OSError as e:
        if e.errno not in DISK_FULL_ERRNOS:
            return engine.failed_message(e)
        log.exception("the disk is full")  # another worker's may have room
        return Failed("no_space", "The worker's disk is full; try again later.", can_retry=True)
    except Exception as e:
        return engine.failed_message(e)
    finally:
        if not goes_on:
            checkpoint_writer.close()


def _warm_up(engine: Engine, entry: ModelEntry) -> None:
    """Generate the default clip once. On failure log it and go on: smaller requests may still fit."""
    began = time.monotonic()
    try:
        engine.warm_up(entry.default_generation)
        log.info("warmed up in %.1f s", time.monotonic() - began)
    except Exception:
        log.exception("warm-up failed: %s cannot generate its default clip on this machine", entry.id)
