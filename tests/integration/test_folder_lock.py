"""One server per data folder, however the processes are started: a shell, a pty, an init system."""

from __future__ import annotations

import fcntl
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from redis import Redis

from service.process.folder_lock import LOCK_FILE, FolderInUse, FolderLock
from tests.containers import ROOT
from tests.processes import clean_environment, wait_for

PROGRAM = """
import sys, time
from pathlib import Path
from service.errors import ConfigurationError
from service.process import embedded_valkey
from service.process.standard_streams import open_closed_streams
open_closed_streams()
embedded_valkey.LOCK_TIMEOUT_S = embedded_valkey.LIVE_LOCK_TIMEOUT_S = 0.2
out = Path(sys.argv[2])
try:
    with embedded_valkey.EmbeddedValkey(Path(sys.argv[1])) as url:
        out.write_text(url)
        time.sleep(60)
except ConfigurationError as e:
    out.write_text(e.message)
"""


def shell_command(folder: Path, out: Path, redirections: str = "") -> str:
    return f"{shlex.join([sys.executable, '-c', PROGRAM, str(folder), str(out)])} {redirections}"


def from_a_shell(folder: Path, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["/bin/sh", "-c", "exec " + shell_command(folder, out)], env=_environment())


def with_closed_streams(folder: Path, out: Path) -> subprocess.Popen[bytes]:
    command = "exec " + shell_command(folder, out, "<&- >&- 2>&-")
    return subprocess.Popen(["/bin/sh", "-c", command], env=_environment())


def from_an_init_system(folder: Path, out: Path) -> subprocess.Popen[bytes]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        ["/bin/sh", "-c", "exec " + shell_command(folder, out, "</dev/null")], env=environment, start_new_session=True
    )


def from_a_terminal(folder: Path, out: Path) -> subprocess.Popen[bytes]:
    _, terminal = pty.openpty()  # closing the other end would hang up
    try:
        return subprocess.Popen(
            ["/bin/sh", "-c", "exec " + shell_command(folder, out)],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=_environment(),
            start_new_session=True,
        )
    finally:
        os.close(terminal)


Starter = Callable[[Path, Path], subprocess.Popen[bytes]]
STARTERS: tuple[Starter, ...] = (from_a_shell, with_closed_streams, from_an_init_system, from_a_terminal)


@contextmanager
def running(start: Starter, folder: Path, out: Path) -> Iterator[str]:
    """What the program reports: the URL of its server, or why there is none."""
    process = start(folder, out)
    try:
        yield wait_for(lambda: out.read_text() if out.exists() and out.stat().st_size else None, timeout_s=30)
    finally:
        process.kill()
        process.wait()


@pytest.mark.sample(2)
@pytest.mark.parametrize("start", STARTERS)
def test_a_second_server_on_a_folder_is_refused_however_both_are_started(start: Starter, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with running(start, folder, tmp_path / "first") as url, Redis.from_url(url) as redis:
        redis.set("a", "b")
        with running(start, folder, tmp_path / "second") as refusal:
            assert f"{folder}/valkey is in use by another ivmix" in refusal
        assert redis.get("a") == b"b"


def test_other_spellings_of_a_folder_are_the_same_folder(tmp_path: Path) -> None:
    folder, link = tmp_path / "data", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    with running(from_a_shell, folder, tmp_path / "first"):
        for number, other in enumerate((link, tmp_path / "x" / ".." / "data", Path(os.path.relpath(folder)))):
            (tmp_path / "x").mkdir(exist_ok=True)
            with running(from_a_shell, other, tmp_path / f"second{number}") as refusal:
                assert "in use by another ivmix" in refusal


@pytest.mark.parametrize("change", ["delete", "rename", "replace"])
def test_the_lock_outlives_its_file(change: str, tmp_path: Path) -> None:
    file = tmp_path / LOCK_FILE
    held = FolderLock.acquire(tmp_path, timeout_s=0)
    if change == "rename":
        file.rename(tmp_path / "other")
    else:
        file.unlink()
    if change == "replace":
        file.touch()
    with pytest.raises(FolderInUse):
        FolderLock.acquire(tmp_path, timeout_s=0)
    held.release()
    FolderLock.acquire(tmp_path, timeout_s=0).release()


def test_the_lock_of_an_earlier_version_is_respected(tmp_path: Path) -> None:
    """It locked the file only."""
    with closing(os.fdopen(os.open(tmp_path / LOCK_FILE, os.O_RDWR | os.O_CREAT))) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FolderInUse):
            FolderLock.acquire(tmp_path, timeout_s=0)


def test_a_lock_uses_no_low_descriptor(tmp_path: Path) -> None:
    lock = FolderLock.acquire(tmp_path, timeout_s=0)
    assert min(lock.descriptors) >= 10
    assert not any(os.get_inheritable(descriptor) for descriptor in lock.descriptors)
    lock.release()


def _environment() -> dict[str, str]:
    return clean_environment() | {"PYTHONPATH": str(ROOT)}
