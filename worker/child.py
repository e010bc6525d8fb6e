"""The child's main loop: load the models once, then turn one generation after another into stored files.

Talks to its parent only, over one pipe; knows nothing of Redis, RQ or HTTP. Signals are the parent's business.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from sampler import LatentsNotFinite
from service.jobs import Output, Phase
from service.lifeline import watch_parent
from service.registry import ModelRegistry
from service.settings import Settings
from service.storage import VideoStorage, sha256_of
from service.wiring import open_storage
from worker import video
from worker.engine import Engine
from worker.messages import Cancel, Done, Failed, Progress, Ready, Run, Stopped
from worker.text import PromptTooLong

log = logging.getLogger("ivmix.child")


class _StopAsked(Exception):
    """The parent wants the job stopped between two steps."""


def main(connection: Connection, parent: int, settings: Settings, model: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    watch_parent(parent, lambda: os._exit(71))  # a child whose parent was killed would hold the GPU for ever
    began = time.monotonic()
    engine, storage = Engine(ModelRegistry.of(settings).get(model)), open_storage(settings)
    connection.send(Ready(seconds=time.monotonic() - began))
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if isinstance(message, Run):
            connection.send(_run(engine, storage, connection, message))
        # A Cancel that comes after its job has ended means nothing any more.


def _run(engine: Engine, storage: VideoStorage, connection: Connection, run: Run) -> Done | Failed | Stopped:
    def report(phase: Phase, step: int, total: int) -> None:
        connection.send(Progress(phase, step, total))
        while connection.poll():
            if connection.recv() == Cancel(run.execution_id):
                raise _StopAsked

    try:
        clip = engine.generate(run.generation, report)
        report(Phase.UPLOADING, run.generation.total_steps, run.generation.total_steps)
        began = time.perf_counter()
        output = _store(clip.frames.numpy(), storage, run)
        timings = {**clip.timings, Phase.UPLOADING: time.perf_counter() - began}
        return Done(output, timings, engine.peak_memory_mb())
    except _StopAsked:
        return Stopped()
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
    except Exception:
        log.exception("job failed")  # with its traceback here; the client learns no internals
        return Failed("internal_error", "The video could not be made; the server's log says why.", can_retry=True)


def _store(frames: video.Frames, storage: VideoStorage, run: Run) -> Output:
    """Files first, then the record: each execution writes under its own name, the record points at the winner's."""
    prefix = f"videos/{run.job_id}/{run.execution_id}"
    with tempfile.TemporaryDirectory(prefix="ivmix-") as scratch:
        film, thumbnail, sheet = (Path(scratch) / name for name in ("video.mp4", "thumbnail.webp", "spritesheet.jpg"))
        video.write_mp4(frames, film, fps=run.generation.fps)
        video.write_thumbnail(frames, thumbnail)
        video.write_spritesheet(frames, sheet)
        for file, media_type in ((film, "video/mp4"), (thumbnail, "image/webp"), (sheet, "image/jpeg")):
            storage.put(file, key=f"{prefix}/{file.name}", media_type=media_type, sha256=sha256_of(file))
        return Output(
            key=f"{prefix}/{film.name}",
            thumbnail_key=f"{prefix}/{thumbnail.name}",
            spritesheet_key=f"{prefix}/{sheet.name}",
            size_bytes=film.stat().st_size,
            sha256=sha256_of(film),
        )
