"""The child's main loop: load the models once, then turn one generation after another into stored files.

Talks to its parent only, over one pipe; knows nothing of Redis, RQ or HTTP. Signals are the parent's business.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from multiprocessing.connection import Connection

import torch

from sampler import LatentsNotFinite
from service.errors import StorageError, UnstorableFile
from service.jobs import Phase
from service.lifeline import watch_parent
from service.models import ModelRegistry
from service.settings import Settings
from service.storage import Patience
from service.wiring import open_storage
from worker.delivery import Delivery
from worker.engine import Engine
from worker.messages import Cancel, Done, Failed, Progress, Ready, Run, Stopped
from worker.scratch import Scratch

log = logging.getLogger("ivmix.child")

UNKNOWN = "The video could not be made; the server's log says why."


class _StopAsked(Exception):
    """The parent wants the job stopped between two steps."""


def main(connection: Connection, parent: int, settings: Settings, model: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    watch_parent(parent, lambda: os._exit(71))  # a child whose parent was killed would hold the GPU for ever
    began = time.monotonic()
    engine = Engine(ModelRegistry.load(settings.models).get(model))
    delivery = Delivery(open_storage(settings), Scratch(settings.scratch_folder), Patience(settings.storage_retry_s))
    connection.send(Ready(seconds=time.monotonic() - began))
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if isinstance(message, Run):
            connection.send(_run(engine, delivery, connection, message))
        # A Cancel that comes after its job has ended means nothing any more.


def _run(engine: Engine, delivery: Delivery, connection: Connection, run: Run) -> Done | Failed | Stopped:
    def report(phase: Phase, step: int, total: int) -> None:
        connection.send(Progress(phase, step, total))
        while connection.poll():
            if connection.recv() == Cancel(run.execution_id):
                raise _StopAsked

    def upload() -> None:
        report(Phase.UPLOADING, run.generation.num_inference_steps, run.generation.num_inference_steps)

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
