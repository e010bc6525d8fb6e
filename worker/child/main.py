"""The child's main loop: load the models once, then turn one generation after another into stored files. Models that
do not load end it with a report.

Independent of Redis, RQ and HTTP. The parent handles signals.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import TYPE_CHECKING, cast

from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.log_config import configure_logging
from service.process.parent_watch import POLL_S
from service.process.quick_imports import quick_imports
from service.settings import Settings
from service.wiring import open_storage
from worker.background_thread import BackgroundThread
from worker.child.job import ChildJob
from worker.child.load_failures import cannot_load
from worker.messages import ONE_PROCESS, Processes, Ready, Run, Tuning

if TYPE_CHECKING:
    from worker.child.engine import Engine

log = logging.getLogger("ivmix.child")


def main(control: Connection, settings: Settings, model: str, processes: Processes = ONE_PROCESS) -> None:
    with ExitStack() as stack:

        def load() -> Engine:
            entry = ModelRegistry.of(settings).get(model)
            with quick_imports():
                from worker.child.engine import Engine  # imported before the fork, unless that failed: this says why
                from worker.child.tuning.start import configure

            began, on = time.monotonic(), None
            if processes.count > 1:
                from worker.child.ranks.start import start_ranks

                on = stack.enter_context(start_ranks(entry, processes, settings.log_format))
            engine = Engine(entry, on, previews=settings.preview_seconds > 0)
            if entry.optimise is None and entry.quantise is None and on is None:
                left = settings.tune_s - (time.monotonic() - began)
                configure(engine, entry, settings, left, lambda limit_s: control.send(Tuning(limit_s)))
            _warm_up(engine, entry)
            return engine

        start(control, settings, load)


def start(control: Connection, settings: Settings, load: Callable[[], Engine]) -> None:
    """Set up this process, and work until the parent closes the control pipe."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    configure_logging(settings.log_format)
    _end_with_parent()
    serve(control, settings, load)


def _end_with_parent() -> None:
    """A child whose parent was killed would hold the GPU forever; one whose fork server has ended counts as ended."""
    parent, fork_server = multiprocessing.parent_process(), os.getppid()
    assert parent is not None, "a child is started by multiprocessing"

    def watch() -> None:
        while parent.is_alive() and os.getppid() == fork_server:
            parent.join(POLL_S)
        os._exit(71)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def serve(control: Connection, settings: Settings, load: Callable[[], Engine]) -> None:
    """Sample one job after another. A background thread decodes and stores one while the next is sampled."""
    began = time.monotonic()
    try:
        engine = load()
    except Exception as e:
        control.send(cannot_load(e, settings))
        return
    storage, background = open_storage(settings), BackgroundThread()
    control.send(Ready(time.monotonic() - began, engine.device_name, engine.configuration))
    while True:
        try:
            connection = Connection(recv_handle(control))
            run = cast(Run, connection.recv())
        except (EOFError, OSError):  # the parent is gone, or done with us
            return
        ChildJob(run, connection, engine, storage, settings).sample(background)


def _warm_up(engine: Engine, entry: ModelEntry) -> None:
    """Generate the default clip once. On failure log it and go on: smaller requests may still fit."""
    began = time.monotonic()
    try:
        engine.warm_up(entry.default_generation)
        log.info("warmed up in %.1f s", time.monotonic() - began)
    except Exception:
        log.exception("warm-up failed: %s cannot generate its default clip on this machine", entry.id)
