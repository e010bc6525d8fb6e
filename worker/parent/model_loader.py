"""Loads the models in the child, again and again until they load, and reports meanwhile why this worker has none."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from redis.exceptions import RedisError

from service.jobs.model_loads import REPORT_S, ModelLoads
from service.process.heartbeat_file import HeartbeatFile
from service.process.readiness import report_problem, report_ready
from worker.messages import CannotLoad
from worker.parent.child_process import Child, ChildDied, ModelsNotLoaded
from worker.parent.metrics import WorkerMetrics

log = logging.getLogger("ivmix.worker")

PAUSES_S = (5.0, 10.0, 20.0, 40.0, 60.0)  # after consecutive failures; the last one repeats
POLL_S = 1.0  # between two looks at the files during a pause
MIN_FAILURES = 3  # consecutive ones of a kind that may pass, such as a full GPU, before the model counts as broken
DIED = "The process that loads it ends unexpectedly; see the server log."

FileStates = dict[Path, tuple[int, int]]  # time of the last change in ns, and size in bytes


@dataclass
class ModelLoader:
    child: Child
    model: str
    loads: ModelLoads
    metrics: WorkerMetrics
    heartbeat_file: HeartbeatFile
    stopping: threading.Event
    files: Sequence[Path]
    """Folders and files of the model. When one changes, the next attempt follows at once."""
    _worker: str = field(default_factory=lambda: uuid.uuid4().hex)
    _shown: str = ""  # why clients cannot have the model; empty while it is loading
    _logged: str = ""
    _next_report_at: float = 0.0

    def load(self) -> bool:
        """Return True as soon as the models are loaded, False if this worker stops before."""
        self.heartbeat_file.set_ready(is_ready=False)
        failures = 0
        while not self.stopping.is_set():
            before = file_states(self.files)
            try:
                self.child.ensure(self._beat)
                if self.child.is_loaded:
                    self._has_loaded()
                    return True
            except ChildDied as e:
                failures += 1
                self._has_failed(_failure_of(e), failures)
                self._pause(PAUSES_S[min(failures, len(PAUSES_S)) - 1], before)
        self._forget()
        return False

    def _has_loaded(self) -> None:
        self._shown = self._logged = ""
        self._next_report_at = 0.0
        self._forget()
        self.metrics.load_failures.set(0)
        self.heartbeat_file.set_ready(is_ready=True)
        report_ready(self.model, self.child.device)

    def _has_failed(self, failure: CannotLoad, failures: int) -> None:
        self.metrics.load_failures.set(failures)
        if failure.reason != self._logged:
            self._logged = failure.reason
            details = f"\n{failure.details}" if failure.details else ""
            log.error("cannot load the models of %s: %s%s", self.model, failure.reason, details)
        if failure.is_final or failures >= MIN_FAILURES:
            self._shown, self._next_report_at = failure.shown, 0.0
            report_problem(self.model, failure.reason)
        self._beat()

    def _pause(self, seconds: float, before: FileStates) -> None:
        """End early when the files have changed since `before` and no longer change."""
        until, last = time.monotonic() + seconds, before
        while time.monotonic() < until and not self.stopping.wait(POLL_S):
            self._beat()
            now = file_states(self.files)
            if now != before and now == last:
                return
            last = now

    def _beat(self) -> bool:
        """Called at least once per second. Returns whether to go on."""
        self.heartbeat_file.beat()
        if time.monotonic() >= self._next_report_at:
            self._next_report_at = time.monotonic() + REPORT_S
            try:
                self.loads.report(self.model, self._worker, self._shown)
            except RedisError as e:
                log.debug("cannot report the state of the models: %s", type(e).__name__)
        return not self.stopping.is_set()

    def _forget(self) -> None:
        try:
            self.loads.forget(self.model, self._worker)
        except RedisError:  # the entry expires
            log.debug("cannot withdraw the report about the models")


def file_states(files: Sequence[Path]) -> FileStates:
    """The states of files, and of those in folders. What cannot be read is left out."""
    states: FileStates = {}
    for path in files:
        try:
            for file in (path, *(path.iterdir() if path.is_dir() else ())):
                status = file.stat()
                states[file] = (status.st_mtime_ns, status.st_size)
        except OSError:
            continue
    return states


def _failure_of(e: ChildDied) -> CannotLoad:
    return e.failure if isinstance(e, ModelsNotLoaded) else CannotLoad(str(e), DIED)
