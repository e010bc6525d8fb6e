"""The parent's handle on the child that keeps the models. The parent never loads torch, so it can always be killed,
drained and restarted cleanly, and it can kill a child that hangs inside a CUDA call."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import send_handle
from typing import Protocol, cast

from service.settings import Settings
from worker.messages import ONE_PROCESS, CannotLoad, Processes, Ready, Report, Run, Stop

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
        self.process.kill()
        self.process.join(EXIT_GRACE_S)


class ChildProcess:
    """One child process, restarted by `ensure` after it ended. `enter` is its entry point.

    With several `processes` it starts the others, and ends with any of them.
    """

    def __init__(
        self, settings: Settings, model: str, enter: Enter | None = None, processes: Processes = ONE_PROCESS
    ) -> None:
        self._settings, self._model = settings, model
        self._enter = enter or partial(_enter, processes=processes)
        self.gpus = processes.count
        self._control: PipeChannel | None = None
        self._has_loaded = False
        self.device = ""  # of the models, once they are loaded

    @property
    def is_loaded(self) -> bool:
        """Whether a child is running and has loaded the models."""
        return self._has_loaded and self._control is not None and self._control.process.is_alive()

    def ensure(self, beat: Callable[[], bool]) -> None:
        """Start a child and load the models if none is running. `beat` is called meanwhile; False ends the wait. Raises
        ChildDied or ModelsNotLoaded."""
        if self.is_loaded:
            return
        self.kill()
        control = self._control = self._spawn()
        deadline = time.monotonic() + LOAD_TIMEOUT_S
        while time.monotonic() < deadline:
            if not beat():
                return
            match control.receive(1.0):
                case Ready() as ready:
                    pid = control.process.pid
                    log.info("models of %s loaded in %.1f s on %s, child %s", self._model, *astuple(ready), pid)
                    self.device, self._has_loaded = ready.device, True
                    return
                case CannotLoad() as failure:
                    self.kill()
                    raise ModelsNotLoaded(failure)
                case _:
                    pass
        self.kill()
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


def _enter(control: Connection, parent: int, settings: Settings, model: str, processes: Processes) -> None:
    from worker.child.main import main  # here, in the child: it loads torch

    main(control, parent, settings, model, processes)
