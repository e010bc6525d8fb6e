"""The child's main loop: load the models once, then turn one generation after another into stored files.

Talks to its parent only, over one pipe; knows nothing of Redis, RQ or HTTP. Signals are the parent's business.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from collections import deque
from multiprocessing.connection import Connection

import torch

from sampler import LatentsNotFinite
from service.errors import StorageError, UnstorableFile
from service.jobs import Phase
from service.lifeline import watch_parent
from service.logs import about, configure_logs
from service.metrics import MeasuredStorage, StorageCall
from service.registry import ModelRegistry
from service.settings import Settings
from service.storage import Patience
from service.wiring import open_storage
from worker.delivery import Delivery
from worker.engine import Engine
from worker.messages import Cancel, Done, Failed, Message, Progress, Ready, Run, Stopped
from worker.scratch import Scratch
from worker.text import PromptTooLong

log = logging.getLogger("ivmix.child")

UNKNOWN = "The video could not be made; the server's log says why."


class _StopAsked(Exception):
    """The parent wants the job stopped between two steps."""


def main(connection: Connection, parent: int, settings: Settings, model: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    configure_logs(settings.log_format)
    watch_parent(parent, lambda: os._exit(71))  # a child whose parent was killed would hold the GPU for ever
    began = time.monotonic()
    engine = Engine(ModelRegistry.of(settings).get(model))
    line = _Line(connection)
    storage = MeasuredStorage(open_storage(settings), line.note)
    delivery = Delivery(storage, Scratch(settings.scratch_folder), Patience(settings.storage_retry_s))
    line.send(Ready(seconds=time.monotonic() - began))
    while True:
        try:
            message = line.receive()
        except EOFError:
            return
        if isinstance(message, Run):
            with about(video_id=message.job.id, execution_id=message.execution_id):
                line.send(_run(engine, delivery, line, message))
        # A Cancel that comes after its job has ended means nothing any more.


class _Line:
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


def _run(engine: Engine, delivery: Delivery, line: _Line, run: Run) -> Done | Failed | Stopped:
    def report(phase: Phase, step: int, total: int) -> None:
        line.send(Progress(phase, step, total))
        while line.has_word():
            if line.receive() == Cancel(run.execution_id):
                raise _StopAsked

    def upload() -> None:
        report(Phase.UPLOADING, run.generation.total_steps, run.generation.total_steps)

    try:
        began = time.perf_counter()
        finished = delivery.find(run.job, run.execution_id, meanwhile=upload)
        if finished is None:
            clip, peak_memory_mb = engine.generate(run.generation, report), engine.peak_memory_mb()
            began = time.perf_counter()
            finished = delivery.deliver(
                run.job,
                run.execution_id,
                clip.frames.numpy(),
                timings=clip.timings,
                peak_memory_mb=peak_memory_mb,
                meanwhile=upload,
            )
        timings = {**finished.job.timings, Phase.UPLOADING: time.perf_counter() - began}
        return Done(finished.output, timings, finished.job.peak_memory_mb)
    except _StopAsked:
        return Stopped()
    except UnstorableFile:
        log.exception("the files on scratch were harmed")
        return Failed("internal_error", UNKNOWN, can_retry=True)
    except StorageError as e:
        log.error("the storage stayed away: %s", e)
        return Failed("storage_unavailable", "The finished video could not be stored; try again.", can_retry=False)
    except LatentsNotFinite:
        log.exception("latents are not finite")
        return Failed("not_finite", "The clip became NaN on its way; ask for a lower guidance.", can_retry=False)
    except PromptTooLong as e:
        return Failed("prompt_too_long", f"A prompt is too long: {e}.", can_retry=False)
    except ValueError as e:  # what the engine refuses: final, and the client's to change
        return Failed("invalid_input", str(e), can_retry=False)
    except torch.OutOfMemoryError:
        log.exception("out of memory")
        return Failed("out_of_memory", "The GPU has not enough memory for this size and length.", can_retry=False)
    except OSError as e:
        log.exception("job failed")
        if e.errno == errno.ENOSPC:  # another worker's disk may have room
            return Failed("no_space", "The worker's disk is full; try again later.", can_retry=True)
        return Failed("internal_error", UNKNOWN, can_retry=True)
    except Exception:
        log.exception("job failed")  # with its traceback here; the client learns no internals
        return Failed("internal_error", UNKNOWN, can_retry=True)
