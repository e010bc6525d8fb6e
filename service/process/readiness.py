"""How a worker reports to `ivmix up` that its models are loaded, or why not: a line through a pipe that it inherits."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Self

READY_FD = "IVMIX_READY_FD"  # environment variable: descriptor of the pipe, set by the supervisor for its workers
MAX_PROBLEM = 500  # characters; in JSON up to six bytes each


@dataclass(frozen=True)
class WorkerReport:
    """A worker can take jobs, unless it has a problem."""

    pid: int
    model: str
    device: str = ""
    """For people: `CPU, 2 threads` or the name of the GPU."""
    problem: str = ""
    """Why its models cannot be loaded."""


def report_ready(model: str, device: str) -> None:
    """Does nothing in a process without a supervisor."""
    _write(WorkerReport(os.getpid(), model, device))


def report_problem(model: str, problem: str) -> None:
    """Does nothing in a process without a supervisor."""
    _write(WorkerReport(os.getpid(), model, problem=problem[:MAX_PROBLEM]))


def _write(report: WorkerReport) -> None:
    if (descriptor := os.environ.get(READY_FD, "")).isdecimal():
        with suppress(OSError):  # the supervisor is gone, and this process will be soon
            os.write(int(descriptor), json.dumps(asdict(report)).encode() + b"\n")


class ReadyPipe:
    """The supervisor's side. Lines are shorter than a pipe's atomic write, so those of several workers do not mix."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        for end in (self._reader, self.writer):  # no side ever waits for the other
            os.set_blocking(end, False)
        self._rest = b""

    def read(self) -> list[WorkerReport]:
        """What was reported since the last call. Does not block."""
        with suppress(BlockingIOError):
            self._rest += os.read(self._reader, 2**16)
        *lines, self._rest = self._rest.split(b"\n")
        return [WorkerReport(**json.loads(line)) for line in lines]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._reader)
        os.close(self.writer)
