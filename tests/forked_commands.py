"""Commands of `ivmix bench` in processes that can be killed, without the seconds of imports for each.

One process imports what the commands need and forks a child for every command. It has a single thread, so forking it is
safe; a test process has more.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

KILL_TIMEOUT_S = 120.0


class ForkedCommands:
    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit status, and what the command printed."""
        self._start(arguments)
        return self._status(), self._log.read_text()

    def run_and_kill(self, *arguments: str, when: Callable[[], bool], may_end: bool = False) -> None:
        """SIGKILL as soon as `when` is true; the command must not have ended before, unless it may."""
        pid, deadline = self._start(arguments), time.monotonic() + KILL_TIMEOUT_S
        while not when():
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.005)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        assert self._status() in {-signal.SIGKILL, 0 if may_end else -signal.SIGKILL}, self._log.read_text()

    def _start(self, arguments: Sequence[str]) -> int:
        return int(self._ask({"arguments": arguments, "log": str(self._log)}))

    def _status(self) -> int:
        return int(self._read())

    def _ask(self, question: dict[str, Any]) -> str:
        assert self._process.stdin is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextmanager
def forked_commands(folder: Path) -> Generator[ForkedCommands]:
    command = [sys.executable, "-m", "tests.forked_commands"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield ForkedCommands(process, folder / "log.txt")
        assert process.stdin is not None
        process.stdin.close()  # ends the loop of `_serve`


def _serve() -> None:
    from service.process.quick_imports import quick_imports

    with quick_imports():
        import benchmarks.paper.html_page  # noqa: F401
        from benchmarks.paper.demo_world import judges
        from benchmarks.paper.local_maker import loaded
    judges()
    loaded("demo")
    for line in sys.stdin:
        question = cast("dict[str, Any]", json.loads(line))
        pid = os.fork()
        if pid == 0:
            _command(question["arguments"], question["log"])
        print(pid, flush=True)
        status = os.waitpid(pid, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)


def _command(arguments: list[str], log: str) -> None:
    """Never returns."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.argv = ["ivmix", "bench", *arguments]
    from service.cli.main import main

    code: Any = 1
    try:
        main()
        code = 0
    except SystemExit as e:
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
