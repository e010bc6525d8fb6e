"""The parent's handle on the child that keeps the models. The parent never loads torch, so it can always be killed,
drained and restarted cleanly, and it can kill a child that hangs inside a CUDA call."""

from __future__ import annotations

import logging
import math
import multiprocessing
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import send_handle
from typing import Protocol, cast

from service.catalog.optimise import Configuration
from service.settings import Settings
from worker.messages import ONE_PROCESS, CannotLoad, Processes, Ready, Report, Run, Stop, Tuning

log = logging.getLogger("ivmix.worker")

LOAD_TIMEOUT_S = 900.0
EXIT_GRACE_S = 3.0

# What a child runs: its end of the control pipe, the settings, the model.
Enter = Callable[[Connection, Settings, str], None]

# A child is forked from a process that has imported torch and started neither CUDA nor a thread. torch's notes on
# multiprocessing name spawn and forkserver as the start methods with which CUDA can be used.
FORKING = multiprocessing.get_context("forkserver")
FORK_SERVER = "worker.child.fork_server"
IMPORTS = "worker.child.preload"


class ChildDied(Exception):
    """The child ended without a result (killed, crashed, out of host memory)."""


class ModelsNotLoaded(ChildDied):
    """The child has said why it cannot load the models."""

    def __init__(self, failure: CannotLoad) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class Channel(Protocol):
    """Messages about one job, for one thread at a time. `receive` returns None after a timeout and raises ChildDied;
    `kill` kills the process that has the job."""

    def send(self, message: Run | Stop) -> None: ...
    def receive(self, timeout_s: float) -> Report | None: ...
    def kill(self) -> None: ...


class Child(Protocol):
    """The child process as the runner uses it. `ensure` and `start` raise ChildDied, `ensure` also ModelsNotLoaded."""

    device: str
    configuration: Configuration | None
    gpus: int

    @property
    def is_loaded(self) -> bool: ...

    def ensure(self, beat: Callable[[], bool]) -> None: ...
    def start(self, run: Run) -> Channel: ...
    def kill(self) -> None: ...


@dataclass(frozen=True)
class PipeChannel:
    """The parent's end of one job's pipe."""

    connection: Connection
    process: BaseProcess

    def send(self, message: Run | Stop) -> None:
        with suppress(OSError):  # the child closed the pipe: `receive` returns its last report, or raises
            self.connection.send(message)

    def receive(self, timeout_s: float) -> Report | None:
        try:
            return cast(Report, self.connection.recv()) if self.connection.poll(timeout_s) else None
        except (EOFError, OSError) as e:
            self.process.join(EXIT_GRACE_S)
            raise ChildDied(f"the child ended with exit code {self.process.exitcode}") from e

    def kill(self) -> None:
        if self.process.is_alive():  # another process may have the number of one that has ended
            self.process.kill()
        self.process.join(EXIT_GRACE_S)


class _Start(threading.Thread):
    """The start of one child. It takes as long as the fork server's imports, if that has to be started first."""

    def __init__(self, settings: Settings, model: str, enter: Enter | None, processes: Processes) -> None:
        super().__init__(name="start-child", daemon=True)
        ours, self._theirs = FORKING.Pipe()
        args = (self._theirs, settings, model)
        target = enter or partial(_enter, processes=processes)
        process = FORKING.Process(target=target, args=args, name=f"ivmix-child-{model}", daemon=True)
        self._control = PipeChannel(ours, process)
        FORKING.set_forkserver_preload([FORK_SERVER] if enter else [FORK_SERVER, IMPORTS])
        self._error: Exception | None = None
        self._is_abandoned = False

    def run(self) -> None:
        with self._theirs:
            try:
                self._control.process.start()
            except (OSError, EOFError) as e:
                self._error = e
        if self._is_abandoned:
            self.abandon()

    def control(self, timeout_s: float) -> PipeChannel | None:
        """The control pipe of the started child, None after a timeout. Raises ChildDied."""
        self.join(timeout_s)
        if self._error is not None:
            raise ChildDied(
                "the process that imports torch for the child has ended, or hung and was ended"
            ) from self._error
        return None if self.is_alive() else self._control

    def abandon(self) -> None:
        """Kill the child, as soon as it runs."""
        self._is_abandoned = True
        if self._control.process.pid is not None:
            self._control.connection.close()
            self._control.process.join(0.2)  # an idle child ends when its control pipe closes
            self._control.kill()


class ChildProcess:
    """One child process, restarted by `ensure` after it ended. `enter` is its entry point; with another one than the
    worker's own, nothing is imported before it is called. With several `processes` the child starts the others, and
    ends with any of them."""

    def __init__(
        self, settings: Settings, model: str, enter: Enter | None = None, processes: Processes = ONE_PROCESS
    ) -> None:
        self._settings, self._model, self._enter, self._processes = settings, model, enter, processes
        self._start: _Start | None = None
        self._control: PipeChannel | None = None
        self._has_loaded = False
        self._tuned_until = math.inf
        self.gpus = processes.count
        self.device = ""  # of the models, once they are loaded
        self.configuration: Configuration | None = None  # of the networks, likewise

    @property
    def is_loaded(self) -> bool:
        """Whether a child is running and has loaded the models."""
        return self._has_loaded and self._control is not None and self._control.process.is_alive()

    def ensure(self, beat: Callable[[], bool]) -> None:
        """Start a child and load the models if none is running. `beat` is called meanwhile; False ends the wait. Raises
        ChildDied or ModelsNotLoaded."""
        if self.is_loaded:
            return
        if not self._load(beat):
            self._load(beat)

    def _load(self, beat: Callable[[], bool]) -> bool:
        """False if the child had to be ended while it tuned; the next one does not, but takes what was measured."""
        self.kill()
        start = self._start = _Start(self._settings, self._model, self._enter, self._processes)
        start.start()
        deadline, self._tuned_until = time.monotonic() + LOAD_TIMEOUT_S, math.inf
        while time.monotonic() < min(deadline, self._tuned_until):
            if not beat():
                return True
            if self._control is None:
                self._control = start.control(1.0)
            elif self._is_ready(self._control):
                return True
        self.kill()
        if self._tuned_until < math.inf:
            log.warning("tuning %s did not end in time; loading it again with the fastest that was found", self._model)
            return False
        raise ChildDied(f"no models after {LOAD_TIMEOUT_S:.0f} s")

    def _is_ready(self, control: PipeChannel) -> bool:
        match control.receive(1.0):
            case Ready() as ready:
                pid = control.process.pid
                loaded = f"{ready.seconds:.1f} s on {ready.device}"
                log.info("models of %s loaded in %s, child %s", self._model, loaded, pid)
                self.device, self.configuration, self._has_loaded = ready.device, ready.configuration, True
            case Tuning() as tuning:
                log.info("tuning %s, for at most %.0f s", self._model, tuning.limit_s)
                self._tuned_until = time.monotonic() + tuning.limit_s
                self._settings = self._settings.model_copy(update={"tune_s": 0.0})  # of later children
            case CannotLoad() as failure:
                self.kill()
                raise ModelsNotLoaded(failure)
            case _:
                pass
        return self._has_loaded

    def start(self, run: Run) -> Channel:
        """Send a job to the child. Each job has its own pipe; the control pipe carries the child's ends of them."""
        if self._control is None:
            raise ChildDied("no child process is running")
        ours, theirs = multiprocessing.Pipe()
        channel = PipeChannel(ours, self._control.process)
        with theirs:
            try:
                send_handle(self._control.connection, theirs.fileno(), self._control.process.pid)
            except OSError as e:
                raise ChildDied("the child closed its control pipe") from e
        channel.send(run)
        return channel

    def kill(self) -> None:
        """Kill the child in any state."""
        if self._start is not None:
            self._start.abandon()
        self._start, self._control, self._has_loaded = None, None, False


def _enter(control: Connection, settings: Settings, model: str, processes: Processes) -> None:
    from worker.child.main import main  # here, in the child: it loads torch

    main(control, settings, model, processes)
