"""The child's main loop: load the models once, then turn one generation after another into stored files.

Talks to its parent only, over one pipe; knows nothing of Redis, RQ or HTTP, and of the engine only what it is asked
for. Signals are the parent's business.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from service import places
from service.errors import StorageError
from service.jobs import Generation, Output, Phase
from service.lifeline import watch_parent
from service.models import ModelRegistry
from service.settings import Settings
from service.storage import VideoStorage, sha256_of
from service.wiring import open_storage
from worker import video
from worker.keeper import Keeper, State
from worker.messages import Cancel, Done, Drain, Failed, Progress, Ready, Run, Stopped

log = logging.getLogger("ivmix.child")


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

        return Engine(ModelRegistry.load(settings.models).get(model))

    serve(connection, parent, settings, load)


def serve(connection: Connection, parent: int, settings: Settings, load: Callable[[], Producer]) -> None:
    """Until the pipe closes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    watch_parent(parent, lambda: os._exit(71))  # a child whose parent was killed would hold the GPU for ever
    began = time.monotonic()
    engine, storage = load(), open_storage(settings)
    connection.send(Ready(seconds=time.monotonic() - began))
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if isinstance(message, Run):
            keeper = Keeper(storage, places.checkpoint(message.job.id), every_s=settings.checkpoint_s)
            connection.send(_run(engine, storage, keeper, connection, message))
        # A Cancel or Drain that comes after its job has ended means nothing any more.


def _run(
    engine: Producer, storage: VideoStorage, keeper: Keeper, connection: Connection, run: Run
) -> Done | Failed | Stopped:
    def report(phase: Phase, step: int, total: int) -> None:
        connection.send(Progress(phase, step, total))
        while connection.poll():
            match connection.recv():
                case Cancel(run.execution_id):
                    raise _StopAsked
                case Drain(run.execution_id):
                    keeper.save_now()
                    raise _StopAsked
                case _:
                    pass

    try:
        with tempfile.TemporaryDirectory(prefix="ivmix-") as scratch:
            resume = keeper.fetch(Path(scratch)) if run.may_resume else None
            clip = engine.generate(run.generation, report, on_step=keeper.offer, resume=resume)
        report(Phase.UPLOADING, run.generation.num_inference_steps, run.generation.num_inference_steps)
        began = time.perf_counter()
        output = _store(np.asarray(clip.frames), storage, run)
        timings = {**clip.timings, Phase.UPLOADING: time.perf_counter() - began}
        return Done(output, timings, engine.peak_memory_mb())
    except _StopAsked:
        return Stopped()
    except StorageError as e:
        log.error("the video could not be stored: %s", e)
        return Failed("storage_error", "The video could not be stored.", can_retry=True)
    except Exception as e:
        return engine.failure(e)
    finally:
        keeper.close()


def _store(frames: video.Frames, storage: VideoStorage, run: Run) -> Output:
    """Files first, then the record: each execution writes under its own name, the record points at the winner's."""
    prefix = places.execution(run.job.id, run.execution_id)
    with tempfile.TemporaryDirectory(prefix="ivmix-") as scratch:
        film, thumbnail, sheet = (Path(scratch) / name for name in ("video.mp4", "thumbnail.webp", "spritesheet.jpg"))
        video.write_mp4(frames, film, fps=run.generation.fps)
        video.write_thumbnail(frames, thumbnail)
        video.write_spritesheet(frames, sheet)
        for file, media_type in ((film, "video/mp4"), (thumbnail, "image/webp"), (sheet, "image/jpeg")):
            storage.put(file, key=prefix + file.name, media_type=media_type, sha256=sha256_of(file))
        return Output(
            key=prefix + film.name,
            thumbnail_key=prefix + thumbnail.name,
            spritesheet_key=prefix + sheet.name,
            size_bytes=film.stat().st_size,
            sha256=sha256_of(film),
        )
