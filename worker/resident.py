"""The parent's handle on the child that keeps the models. The parent never loads torch, so it can always be killed,
drained and restarted cleanly, and it can kill a child that hangs inside a CUDA call."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Protocol, cast

from service.settings import Settings
from worker.messages import Message, Order, Ready

log = logging.getLogger("ivmix.worker")

LOAD_TIMEOUT_S = 900.0
EXIT_GRACE_S = 3.0


# What a child runs: its end of the pipe, the parent's process id, the settings, the model.
Enter = Callable[[Connection, int, Settings, str], None]


class ChildDied(Exception):
    """The child ended without an answer: killed, crashed, or out of host memory."""


class Child(Protocol):
    """What the runner needs of a child process."""

    def ensure(self, beat: Callable[[], None]) -> None: ...
    def send(self, message: Order) -> None: ...
    def receive(self, timeout_s: float) -> Message | None: ...
    def kill(self) -> None: ...


class Resident:
    """One child process, started again when it is gone. `enter` is its whole program."""

    def __init__(self, settings: Settings, model: str, enter: Enter | None = None) -> None:
        self._settings, self._model, self._enter = settings, model, enter or _enter
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.is_alive() else None

    def ensure(self, beat: Callable[[], None]) -> None:
        """Have a child with loaded models; `beat` is called while it loads. Raises ChildDied if it does not."""
        if self._process is not None and self._process.is_alive():
            return
        self.kill()
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=self._enter,
            args=(theirs, os.getpid(), self._settings, self._model),
            name=f"ivmix-child-{self._model}",
            daemon=True,
        )
        self._process.start()
        theirs.close()
        deadline = time.monotonic() + LOAD_TIMEOUT_S
        while time.monotonic() < deadline:
            beat()
            ready = self.receive(1.0)
            if isinstance(ready, Ready):
                log.info("models of %s loaded in %.1f s, child %s", self._model, ready.seconds, self._process.pid)
                return
        self.kill()
        raise ChildDied(f"no models after {LOAD_TIMEOUT_S:.0f} s")

    def send(self, message: Order) -> None:
        try:
            self._pipe().send(message)
        except OSError as e:
            raise ChildDied("the child closed its pipe") from e

    def receive(self, timeout_s: float) -> Message | None:
        """The next message, or None when none came in time. Raises ChildDied."""
        try:
            if self._pipe().poll(timeout_s):
                return cast(Message, self._pipe().recv())
        except (EOFError, OSError) as e:
            code = self._exit_code()
            raise ChildDied(f"the child ended with exit code {code}") from e
        return None

    def kill(self) -> None:
        """End the child whatever it does; a child that waits for work ends by itself when the pipe closes."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.join(0.2)
            self._process.kill()
            self._process.join(EXIT_GRACE_S)
        self._connection = self._process = None

    def _exit_code(self) -> int | None:
        if self._process is None:
            return None
        self._process.join(EXIT_GRACE_S)
        return self._process.exitcode

    def _pipe(self) -> Connection:
        if self._connection is None:
            raise ChildDied("there is no child")
        return self._connection


def _enter(connection: Connection, parent: int, settings: Settings, model: str) -> None:
    from worker.child import main  # here, in the child: it loads torch

    main(connection, parent, settings, model)
