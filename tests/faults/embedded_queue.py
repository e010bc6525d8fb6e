"""The embedded server of `ivmix up`, restarted as the supervisor restarts it; faults can hold a restart back."""

from __future__ import annotations

import logging
import os
import resource
import signal
import threading
from contextlib import suppress
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from service.process.embedded_valkey import EmbeddedValkey
from tests.processes import session_of, wait_for

RESTART_LOOK_S = 0.1
READY_S = 60.0


class EmbeddedQueue:
    """A context. The server's folder is `data_dir`/valkey."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir, self.folder = data_dir, data_dir / "valkey"
        self._server = EmbeddedValkey(data_dir)
        self._is_held = threading.Event()
        self._is_closing = threading.Event()
        self._file_limit: int | None = None
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor of the queue", daemon=True)

    def __enter__(self) -> EmbeddedQueue:
        logging.getLogger("ivmix.up").addHandler(logging.FileHandler(self.data_dir / "supervisor.log"))
        self.url = self._server.start()
        self._supervisor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closing.set()
        self._supervisor.join()
        self._server.stop()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2].split("/")[0])

    @property
    def password(self) -> str:
        return self.url.removeprefix("redis://:").partition("@")[0]

    def kill(self) -> None:
        """Kill the server and hold the restart back until `start`."""
        self._is_held.set()
        self.kill_server()

    def kill_server(self) -> None:
        """kill -9, which the supervisor has to notice."""
        if (pid := self.pid) is not None:
            os.kill(pid, signal.SIGKILL)

    def start(self) -> None:
        self._is_held.clear()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        with Redis.from_url(self.url, retry=Retry(NoBackoff(), 0), socket_timeout=2) as redis:

            def answers() -> bool:
                try:
                    return bool(redis.ping())
                except RedisError:
                    return False

            wait_for(answers, timeout_s=READY_S, hint="for the embedded server")

    @property
    def pid(self) -> int | None:
        for pid in session_of(os.getpid()):
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if f"127.0.0.1:{self.port}".encode() in b" ".join(words) and b"valkey" in words[0]:
                    return pid
        return None

    def limit_files(self, size_bytes: int | None) -> None:
        """As on a full disk, the server cannot write beyond this size; a server that is started anew neither."""
        self._file_limit = size_bytes
        self._apply_limit()

    def _apply_limit(self) -> None:
        if (pid := self.pid) is not None:
            limit = resource.RLIM_INFINITY if self._file_limit is None else self._file_limit
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def _supervise(self) -> None:
        while not self._is_closing.wait(RESTART_LOOK_S):
            if not self._is_held.is_set():
                self._server.restart_if_exited()
                if self._file_limit is not None:
                    self._apply_limit()
