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


# What a child runs: its ends of the two pipes, the parent's process id, the settings, the model.
Enter = Callable[[Connection, Connection, int, Settings, str], None]


class ChildDied(Exception):
    """The child ended without a result (killed, crashed, out of host memory) or hangs."""


class Channel(Protocol):
    """Messages about one job. `send` and `receive` raise ChildDied; `receive` returns None after a timeout; `kill`
    kills the child process."""

    def send(self, message: Order) -> None: ...
    def receive(self, timeout_s: float) -> Message | None: ...
    def kill(self) -> None: ...


class Child(Channel, Protocol):
    """The child process as the runner uses it: the channel of the sampled job, and `second` for postprocessing."""

    def ensure(self, beat: Callable[[], None]) -> None: ...
    def second(self) -> Channel: ...


class PipeChannel:
    """One of the two pipes to a child, bound to that process. Each pipe may be used by a different thread."""

    def __init__(self, connection: Connection, process: BaseProcess) -> None:
        self._connection, self._process = connection, process

    def send(self, message: Order) -> None:
        try:
            self._connection.send(message)
        except OSError as e:
            raise ChildDied("the child closed its pipe") from e

    def receive(self, timeout_s: float) -> Message | None:
        try:
            if self._connection.poll(timeout_s):
                return cast(Message, self._connection.recv())
        except (EOFError, OSError) as e:
            self._process.join(EXIT_GRACE_S)
            raise ChildDied(f"the child ended with exit code {self._process.exitcode}") from e
        return None

    def close(self) -> None:
        self._connection.close()

    def kill(self) -> None:
        """Does not wait: the user of the other pipe gets ChildDied."""
        self._process.kill()


class ChildProcess:
    """One child process, restarted by `ensure` after it ended. `enter` is its entry point."""

    def __init__(self, settings: Settings, model: str, enter: Enter | None = None) -> None:
        self._settings, self._model, self._enter = settings, model, enter or _enter
        self._process: BaseProcess | None = None
        self._first: PipeChannel | None = None
        self._second: PipeChannel | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.is_alive() else None

    def ensure(self, beat: Callable[[], None]) -> None:
        """Start a child and load the models if none is running, calling `beat` meanwhile. Raises ChildDied."""
        if self._process is not None and self._process.is_alive():
            return
        self.kill()
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        (first, their_first), (second, their_second) = context.Pipe(), context.Pipe()
        self._process = context.Process(
            target=self._enter,
            args=(their_first, their_second, os.getpid(), self._settings, self._model),
            name=f"ivmix-child-{self._model}",
            daemon=True,
        )
        self._process.start()
        their_first.close()
        their_second.close()
        self._first, self._second = PipeChannel(first, self._process), PipeChannel(second, self._process)
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
        _require(self._first).send(message)

    def receive(self, timeout_s: float) -> Message | None:
        return _require(self._first).receive(timeout_s)

    def second(self) -> Channel:
        return _require(self._second)

    def kill(self) -> None:
        """Kill the child in any state; an idle child exits when the first pipe closes.

        The second pipe stays open for the postprocessing thread, which gets ChildDied from it.
        """
        if self._first is not None:
            self._first.close()
        if self._process is not None:
            self._process.join(0.2)
            self._process.kill()
            self._process.join(EXIT_GRACE_S)
        self._first = self._second = self._process = None


def _require(channel: PipeChannel | None) -> PipeChannel:
    if channel is None:
        raise ChildDied("no child process is running")
    return channel


def _enter(first: Connection, second: Connection, parent: int, settings: Settings, model: str) -> None:
    from worker.child.main import main  # here, in the child: it loads torch

    main(first, second, parent, settings, model)
