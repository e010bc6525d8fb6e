"""Runs `ivmix` commands in this process, which has imported already what a new one imports for seconds.

For commands that end by themselves. Each kind of command also runs as a real process somewhere, for what only that
shows: start, exit, streams.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

from service.cli.main import main


def ivmix_here(*arguments: str, cwd: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What `python -m service.cli` with these arguments prints, and how it ends.

    Args:
        environment: all variables that the command sees.
    """
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, dict(environment), clear=True),
        mock.patch.object(sys, "argv", ["ivmix", *arguments]),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        _process_state(),
    ):
        code = _exit_code()
    return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())


def _exit_code() -> int:
    """The status with which Python would end; a text that it would print is printed."""
    try:
        main()
    except SystemExit as e:
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
            return 1
        return e.code or 0
    return 0


@contextlib.contextmanager
def _process_state() -> Iterator[None]:
    """Undo what a command sets for its process: logging and signal handlers."""
    root = logging.getLogger()
    handlers, level, raises = root.handlers[:], root.level, logging.raiseExceptions
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with warnings.catch_warnings():
            # `main` runs other commands as modules, and tests import from these
            warnings.filterwarnings("ignore", "'(worker|benchmarks).* found in sys.modules", RuntimeWarning)
            yield
    finally:
        logging.captureWarnings(capture=False)
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.raiseExceptions = raises
        for number, handler in signals.items():
            signal.signal(number, handler)
