"""A Valkey server that tests can kill, freeze and restart on the same port with the same data."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from service.process.embedded_valkey import _configuration, find_valkey_binary
from tests.child_processes import ends_with_tests
from tests.ports import free_port


class Valkey:
    def __init__(self, folder: Path, *, more: str = "") -> None:
        """`more`: further configuration lines."""
        self.port = free_port()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._config = folder / "server.conf"
        self._config.write_text(_configuration(folder, self.port, "secret") + more)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://:secret@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = [find_valkey_binary(), str(self._config)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=ends_with_tests())
        deadline = time.monotonic() + 20
        with Redis.from_url(self.url, retry=Retry(NoBackoff(), 0)) as redis:
            while time.monotonic() < deadline:
                try:
                    redis.ping()
                    return
                except RedisError:
                    time.sleep(0.02)
        raise TimeoutError("Valkey did not answer within 20 s")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """It accepts connections and answers nothing, like a server behind a network that drops packets."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def __enter__(self) -> Valkey:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
