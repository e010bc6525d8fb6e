"""Starts `ivmix up` and single workers as real processes, and inspects the processes they start."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from tests.child_processes import ends_with_tests

T = TypeVar("T")

LIGHT_ENGINE = Path(__file__).with_name("light_engine")
PROMPT = "a red circle moving right on a teal background"


def wait_for(what: Callable[[], T | None], *, timeout_s: float = 60, hint: str = "") -> T:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (found := what()) is not None and found is not False:
            return found
        time.sleep(0.05)
    raise TimeoutError(f"timed out after {timeout_s} s {hint}")


@contextmanager
def ivmix_up(data: Path, *options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yield a running `ivmix up` on a free port, and its URL."""
    command = [sys.executable, "-m", "service.cli", "up", "--port", "0", "--data", str(data), *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=clean_environment() | environment,
        start_new_session=True,
        preexec_fn=ends_with_tests(),
    )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"ivmix is up on (http://\S+)", line):
            break
    else:
        raise RuntimeError("".join(lines))
    try:
        yield process, found.group(1)
    finally:
        process.stdout.close()
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def worker(environment: Mapping[str, str], *program: str) -> Iterator[subprocess.Popen[bytes]]:
    """One worker process: the demo models, unless `program` names another module."""
    with started(environment, *(program or ("worker", "demo"))) as process:
        yield process


@contextmanager
def started(environment: Mapping[str, str], module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env={**clean_environment(), **environment},
        start_new_session=True,
        preexec_fn=ends_with_tests(),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def child_of(pid: int) -> int:
    """Process id of the child of a worker, or of the only worker of `ivmix up`; it holds the models."""
    return wait_for(lambda: running_child_of(pid))


def running_child_of(pid: int) -> int | None:
    """None while there is none."""
    family = session_of(pid)
    return next((child for child in family if parent_of(child) in fork_servers(family)), None)


def fork_server_of(pid: int) -> int:
    """Process id of what a worker forks its children from."""
    return wait_for(lambda: next(iter(fork_servers(session_of(pid))), None))


def fork_servers(family: set[int]) -> set[int]:
    forked = {p for p in family if "forkserver" in command_of(p)}  # children have the command line of theirs
    return {p for p in forked if parent_of(p) not in forked}


def parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def command_of(pid: int) -> str:
    """Command line of a process, with a NUL after each word; "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def clean_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("IVMIX_")}


def light_engine(**environment: str) -> dict[str, str]:
    """Environment in which the workers of `ivmix up` have an engine that draws squares at once: no torch."""
    folders = [LIGHT_ENGINE, Path(__file__).parents[1], *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(map(str, folders)), "FAKE_STEP_S": "0.001", **environment}


def finished_video(http: httpx2.Client, video_id: str, *, timeout_s: float = 120) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        video = http.get(f"/v1/videos/{video_id}").json()
        return video if video["status"] in ("completed", "failed") else None

    return wait_for(ended, timeout_s=timeout_s, hint=f"for {video_id}")


def session_of(pid: int) -> set[int]:
    """Process ids of all running descendants of `pid`."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    family = {pid}
    while grown := {child for child, parent in parents.items() if parent in family} - family:
        family |= grown
    return {p for p in family if p in parents and p != pid}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def is_listening(url: str) -> bool:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.socket() as s:
        s.settimeout(1)
        return s.connect_ex((host, int(port))) == 0
