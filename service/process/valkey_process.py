"""The server process of an embedded Valkey and its guard, which stops it when this process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from service.process import process_guard

STOP_TIMEOUT_S = process_guard.STOP_GRACE_S + 2.0
LOG_TAIL_CHARACTERS = 600


class ValkeyProcess:
    """
    Args:
        command: the server with its arguments.
        log: file for its output; replaced.
        descriptors: inherited by the server, so that what they lock stays locked as long as it runs.
    """

    def __init__(self, command: Sequence[str], log: Path, descriptors: Sequence[int]) -> None:
        self._log = log
        with open(log, "wb", opener=_private) as output:
            self._guard = subprocess.Popen(
                # Isolated and without `site`, so that it starts fast and whatever the environment is.
                [sys.executable, "-I", "-S", process_guard.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=tuple(descriptors),
                start_new_session=True,  # Ctrl-C in the terminal must not reach the server
                umask=0o077,
            )

    def exit_reason(self) -> str | None:
        """Why the server has ended, such as "killed by SIGKILL"; None while it runs."""
        if self._guard.returncode is None:
            if os.waitid(os.P_PID, self._guard.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            self._end_group()
        return _reason(self._guard.wait())

    def log_tail(self) -> str:
        """The end of the server's log in one line."""
        try:
            lines = self._log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:].splitlines()
        except OSError as e:
            return f"({e.strerror})"
        return " / ".join(line.strip() for line in lines if line.strip())

    def stop(self) -> None:
        self._close_stdin()
        try:
            self._guard.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._end_group()

    def _end_group(self) -> None:
        """Kill what is left of the guard's process group, which cannot be another's until the guard is waited for."""
        self._close_stdin()
        os.killpg(self._guard.pid, signal.SIGKILL)
        self._guard.wait()

    def _close_stdin(self) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.close()


def _reason(code: int) -> str:
    if code < 0:
        return f"its guard was killed by {_signal_name(-code)}"
    return f"killed by {_signal_name(code - 128)}" if code > 128 else f"exit code {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
