"""The parent's handle on the child that keeps the models. The parent never loads torch, so it can always be killed,
drained and restarted cleanly, and it can kill a child that hangs inside a CUDA call."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import send_handle
from typing import Protocol, cast

from service.catalog.optimise import Configuration
from service.settings import Settings
from worker.messages import CannotLoad, Ready, Report, Run, Stop, Tuning

log = logging.getLogger("ivmix.worker")

LOAD_TIMEOUT_S = 900.0
EXIT_GRACE_S = 3.0

# What a child runs: its end of the control pipe, the parent's process id, the settings, the model.
Enter = Callable[[Connection, int, Settings, str], None]


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
        self.process.kill()
        self.process.join(EXIT_GRACE_S)


class ChildProcess:
    """One child process, restarted by `ensure` after it ended. `enter` is its entry point."""

    def __init__(self, settings: Settings, model: str, enter: Enter | None = None) -> None:
        self._settings, self._model, self._enter = settings, model, enter or _enter
        self._control: PipeChannel | None = None
        self._has_loaded = False
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
        control = self._control = self._spawn()
        deadline, is_tuning = time.monotonic() + LOAD_TIMEOUT_S, False
        while time.monotonic() < deadline:
            if not beat():
                return True
            match control.receive(1.0):
                case Ready() as ready:
                    pid = control.process.pid
                    loaded = f"{ready.seconds:.1f} s on {ready.device}"
                    log.info("models of %s loaded in %s, child %s", self._model, loaded, pid)
                    self.device, self.configuration, self._has_loaded = ready.device, ready.configuration, True
                    return True
                case Tuning() as tuning:
                    log.info("tuning %s, for at most %.0f s", self._model, tuning.limit_s)
                    deadline = time.monotonic() + tuning.limit_s
                    self._settings, is_tuning = self._settings.model_copy(update={"tune_s": 0.0}), True
                case CannotLoad() as failure:
                    self.kill()
                    raise ModelsNotLoaded(failure)
                case _:
                    pass
        self.kill()
        if is_tuning:
            log.warning("tuning %s did not end in time; loading it again with the fastest that was found", self._model)
            return False
        raise ChildDied(f"no models after {LOAD_TIMEOUT_S:.0f} s")

    def _spawn(self) -> PipeChannel:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        ours, theirs = context.Pipe()
        process = context.Process(
            target=self._enter,
            args=(theirs, os.getpid(), self._settings, self._model),
            name=f"ivmix-child-{self._model}",
            daemon=True,
        )
        process.start()
        theirs.close()
        return PipeChannel(ours, process)

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
        """Kill the child in any state; an idle child exits when its control pipe closes."""
        if self._control is not None:
            self._control.connection.close()
            self._control.process.join(0.2)
            self._control.kill()
            self._control, self._has_loaded = None, False


def _enter(control: Connection, parent: int, settings: Settings, model: str) -> None:
    from worker.child.main import main  # here, in the child: it loads torch

    main(control, parent, settings, model)
