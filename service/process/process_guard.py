"""Runs a command until standard input closes: `python -I -S process_guard.py COMMAND...`; standard library only.

Standard input is a pipe from the process that owns the embedded server, and closes however suddenly that process ends.
The command is killed when this process dies. Descriptors that this process inherits, such as the folder's lock, are
passed on. The exit status is the command's; 128 + n after signal n.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys

STOP_GRACE_S = 8.0  # from SIGTERM to SIGKILL, which is safe: every acknowledged write is on disk
PR_SET_PDEATHSIG = 1
BLOCK_BYTES = 4096


def main(command: list[str]) -> int:
    child_ended, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    # This process has one thread, so the signal for its end cannot come from the end of a mere thread.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        close_fds=False,
        preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509  # there are no other threads
    )
    while process.poll() is None:
        readable, _, _ = select.select([0, child_ended], [], [])
        if 0 in readable and not os.read(0, BLOCK_BYTES):
            return _exit_status(_stop(process))
        if child_ended in readable:
            os.read(child_ended, BLOCK_BYTES)
    return _exit_status(process.returncode)


def _stop(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    try:
        return process.wait(STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _exit_status(code: int) -> int:
    return 128 - code if code < 0 else code


def _die_with(parent: int):  # no imports beyond the standard library's small modules
    libc = ctypes.CDLL(None)  # before the fork: loading it afterwards could block

    def prepare() -> None:
        if hasattr(libc, "prctl"):  # Linux
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

    return prepare


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
