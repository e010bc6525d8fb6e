"""One job in the child: sampled in the main thread, then decoded and stored in the background one, while the main one
samples the next. Every exception becomes a report to the parent."""

from __future__ import annotations

import fcntl
import logging
import struct
import tempfile
import termios
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from service.errors import DISK_FULL_ERRNOS, PermanentStorageError, StorageError
from service.jobs.model import Phase
from service.log_config import log_context
from service.settings import Settings
from service.storage import StorageRetry, VideoStorage, object_keys
from service.storage.manifest import Manifest
from service.storage.metrics import StorageCall, measured
from worker.background_thread import BackgroundThread
from worker.child.checkpoint_upload import CheckpointWriter
from worker.child.gpu_time import GpuTime
from worker.child.previews import Previews
from worker.child.reference_file import ReferenceLost, ReferenceUnreachable, fetch_reference
from worker.child.upload import Uploader
from worker.messages import INTERNAL_ERROR, Done, Failed, Progress, Report, Run, Sampled, Stop, Stopped
from worker.scratch import Scratch

if TYPE_CHECKING:
    from worker.child.clip import SampledLatents
    from worker.child.engine import Engine

log = logging.getLogger("ivmix.child")

CANCEL_POLL_S = 0.5  # how often a job that waits for the previous upload checks for cancellation


class StopRequested(Exception):
    """The parent sent Stop."""

    def __init__(self, stop: Stop) -> None:
        self.save_checkpoint = stop.save_checkpoint


class ParentChannel:
    """The child's end of one job's pipe. Any thread may send."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, report: Report) -> None:
        with self._lock:
            self._connection.send(report)

    @property
    def is_read(self) -> bool:
        """Whether the parent has read every report. It may wait for Redis; then the pipe must not fill with previews,
        for `send` would wait too."""
        with self._lock:
            answer = fcntl.ioctl(self._connection.fileno(), termios.TIOCOUTQ, bytes(4))  # bytes sent and not read
        return struct.unpack("i", answer) == (0,)

    def storage_called(self, call: StorageCall) -> None:
        with suppress(OSError):  # a checkpoint was stored after the job had ended
            self.send(call)

    def stop_order(self) -> Stop | None:
        return cast(Stop, self._connection.recv()) if self._connection.poll() else None

    def close(self) -> None:
        with self._lock:
            self._connection.close()


class ChildJob:
    def __init__(self, run: Run, connection: Connection, engine: Engine, storage: VideoStorage, settings: Settings):
        self._run, self._engine, self._parent = run, engine, ParentChannel(connection)
        self._storage = storage = measured(storage, self._parent.storage_called)
        self._retry = StorageRetry(settings.storage_retry_s)
        self._uploader = Uploader(storage, Scratch(settings.scratch_folder), self._retry)
        key = object_keys.checkpoint(run.job.id)
        self._checkpoint_writer = CheckpointWriter(storage, key, every_s=settings.checkpoint_s)
        self._previews = Previews(settings.preview_seconds, engine.preview_cost_s)
        self._gpu_time = GpuTime(run.job, lambda: engine.decoded_s, engine.gpus)

    def sample(self, background: BackgroundThread) -> None:
        """All calls of the networks; then have `background` do the rest, as soon as it is free."""
        with self._exceptions_reported():
            began = time.perf_counter()
            finished = self._uploader.find(self._run.job, self._run.execution_id, on_wait=self._uploading)
            if finished is not None:
                self._end(_done(finished, began))
                return
            with tempfile.TemporaryDirectory(prefix="ivmix-") as folder:
                resume = self._checkpoint_writer.fetch(Path(folder)) if self._run.may_resume else None
                reference = fetch_reference(
                    self._storage, self._run.job, Path(folder), self._retry, on_wait=self._encoding
                )
                self._gpu_time.begin()
                sampled = self._engine.sample(
                    self._run.generation,
                    self._sampling_progress,
                    on_step=self._checkpoint_writer.offer,
                    on_preview=self._previews.offer,
                    resume=resume,
                    reference=reference,
                )
            while not background.is_free(CANCEL_POLL_S):
                self._sampled_all(Phase.DECODING)  # keeps the parent from assuming a hang, and checks for a stop
            self._parent.send(Sampled())
            background.begin(lambda: self._decode_and_upload(sampled))

    def _decode_and_upload(self, sampled: SampledLatents) -> None:
        with self._exceptions_reported():
            clip = self._engine.decode(sampled, self._progress)
            began = time.perf_counter()
            stored = self._uploader.upload(
                self._run.job,
                self._run.execution_id,
                np.asarray(clip.frames),
                timings=clip.timings,
                peak_memory_mb=self._engine.peak_memory_mb(),
                on_wait=self._uploading,
            )
            self._end(_done(stored, began))

    def _sampling_progress(self, phase: Phase, step: int, total: int) -> None:
        """With the newest preview."""
        if phase is Phase.SAMPLING:
            self._previews.begin()
        self._progress(phase, step, total, self._previews.take() if self._parent.is_read else None)

    def _progress(self, phase: Phase, step: int, total: int, preview: bytes | None = None) -> None:
        """Report it. Raises StopRequested if the parent asked for a stop."""
        self._gpu_time.note(phase, step)
        self._parent.send(Progress(phase, step, total, preview, self._gpu_time.seconds))
        if (stop := self._parent.stop_order()) is not None:
            raise StopRequested(stop)

    def _encoding(self) -> None:
        self._progress(Phase.ENCODING, 0, self._run.generation.total_steps)

    def _uploading(self) -> None:
        self._sampled_all(Phase.UPLOADING)

    def _sampled_all(self, phase: Phase) -> None:
        total = self._run.generation.total_steps
        self._progress(phase, total, total)

    @contextmanager
    def _exceptions_reported(self) -> Generator[None]:
        with log_context(video_id=self._run.job.id, execution_id=self._run.execution_id):
            try:
                yield
            except StopRequested as e:
                self._end(Stopped(), save_checkpoint=e.save_checkpoint)
            except Exception as e:
                self._end(self._failed(e))

    def _failed(self, e: Exception) -> Failed:
        match e:
            case ReferenceLost() | ReferenceUnreachable():
                log.error("%s", e.message, exc_info=e)
                return Failed(e.code, e.message, can_retry=False)
            case PermanentStorageError():
                log.error("files on scratch are corrupt", exc_info=e)
                return Failed("internal_error", INTERNAL_ERROR, can_retry=True)
            case StorageError():
                log.error("storage unavailable, giving up: %s", e)
                message = "The finished video could not be stored; try again."
                return Failed("storage_unavailable", message, can_retry=False)
            case OSError(errno=number) if number in DISK_FULL_ERRNOS:
                log.error("the disk is full", exc_info=e)  # another worker's may have room
                return Failed("no_space", "The worker's disk is full; try again later.", can_retry=True)
            case _:
                return self._engine.failed_message(e)

    def _end(self, report: Done | Failed | Stopped, *, save_checkpoint: bool = False) -> None:
        self._checkpoint_writer.close(save_latest=save_checkpoint)
        self._parent.send(report)
        self._parent.close()


def _done(stored: Manifest, began: float) -> Done:
    timings = {**stored.job.timings, Phase.UPLOADING: time.perf_counter() - began}
    return Done(stored.output, timings, stored.job.peak_memory_mb)
