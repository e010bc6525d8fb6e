"""The API as a separate process, and plain sockets to it: for clients that misbehave."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from service.settings import Settings
from tests.child_processes import ends_with_tests
from tests.ports import free_port
from tests.processes import clean_environment, wait_for


@dataclass(frozen=True)
class Api:
    port: int
    log_file: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def connect(self, *sent: bytes, source: str = "127.0.0.1") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20, source_address=(source, 0))
        for part in sent:
            connection.sendall(part)
        return connection

    def is_alive(self) -> bool:
        return self.seconds_of_livez() < 5

    def seconds_of_livez(self) -> float:
        began = time.monotonic()
        assert httpx2.get(f"{self.url}/livez", timeout=30, trust_env=False).status_code == 200
        return time.monotonic() - began


@contextmanager
def api_process(settings: Settings, folder: Path, *, files: int = 1024, **environment: str) -> Generator[Api]:
    """Run `ivmix api` with a limit on open files, as a shell with `ulimit -n` would."""
    assert settings.redis_url is not None
    api = Api(free_port(), folder / "api.log")
    given = {
        "IVMIX_REDIS_URL": settings.redis_url,
        "IVMIX_DATA_DIR": str(settings.data_dir),
        "IVMIX_PORT": str(api.port),
        "IVMIX_AUTH": settings.auth,
    }
    command = ["bash", "-c", f'ulimit -n {files}; exec "$0" -m service.api', sys.executable]
    with api.log_file.open("w") as log:
        process = subprocess.Popen(
            command, env=clean_environment() | given | environment, stderr=log, preexec_fn=ends_with_tests()
        )
    try:
        wait_for(lambda: _answers(api) or None, timeout_s=60, hint=f"for the API; see {api.log_file}")
        yield api
    finally:
        process.kill()
        process.wait()


def is_closed_within(connection: socket.socket, timeout_s: float) -> bool:
    """Read until the server closes the connection."""
    connection.settimeout(timeout_s)
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            if not connection.recv(65536):
                return True
    except ConnectionError:
        return True
    except TimeoutError:
        pass
    return False


def _answers(api: Api) -> bool:
    try:
        return httpx2.get(f"{api.url}/livez", timeout=1, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False
