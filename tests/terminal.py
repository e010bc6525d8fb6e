"""Runs a command in a pseudo-terminal, as a person sees it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.process.parent_watch import PR_SET_PDEATHSIG
from tests.child_processes import LIBC

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
FRAME = re.compile(r"^\s*[⠀-⣿|/\\-] ")  # of a spinner


class Terminal:
    """A command that thinks a person watches it. `text` is what it wrote, without control sequences."""

    def __init__(self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**env, "TERM": "xterm-256color", "COLUMNS": "100"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=self._take_terminal,
        )
        os.close(slave)
        self._written = b""

    @staticmethod
    def _take_terminal() -> None:
        """Make it the controlling terminal, so that Ctrl-C is a signal, also where the tests run in the background."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    @property
    def text(self) -> str:
        return CONTROL.sub("", self._written.decode(errors="replace"))

    @property
    def lines(self) -> list[str]:
        """What stays on the screen: neither blank lines nor frames of a spinner."""
        written = re.split(r"[\r\n]+", self.text)
        return [line.rstrip() for line in written if line.strip() and not FRAME.match(line)]

    def read_until(self, words: str, *, timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        while words not in self.text:
            if not self._read_some() or time.monotonic() > deadline:
                raise AssertionError(f"{words!r} was not written: {self.text}")

    def wait(self) -> int:
        """Read to the end, and return the exit code."""
        while self._read_some():
            pass
        return self.process.wait(60)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._master)

    def _read_some(self) -> bool:
        """Read what there is within a second. False at the end."""
        if not select.select([self._master], [], [], 1)[0]:
            return True
        try:
            data = os.read(self._master, 2**16)
        except OSError:  # Linux reports the end of a terminal so
            return False
        self._written += data
        return bool(data)
