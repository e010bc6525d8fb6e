"""A Redis that is absent at the start is waited for; one that changes its mind later is no end and no flood."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from redis import Redis

from tests.child_processes import ends_with_tests
from tests.ports import free_port
from tests.processes import clean_environment, is_listening, wait_for
from tests.valkey import Valkey

MODULES = ("service.api", "service.webhook_dispatcher", "service.maintenance")


@contextmanager
def running(module: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            env=clean_environment() | environment,
            stderr=output,
            preexec_fn=ends_with_tests(),
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def environment_of(server: Valkey, folder: Path) -> dict[str, str]:
    return {"IVMIX_REDIS_URL": server.url, "IVMIX_DATA_DIR": str(folder / "data"), "IVMIX_PORT": str(free_port())}


def is_ready(url: str) -> bool:
    return is_listening(url) and httpx2.get(f"{url}/readyz").status_code == 200


@pytest.mark.sample(1)
@pytest.mark.parametrize("module", MODULES)
def test_an_absent_server_is_waited_for_with_one_line(module: str, tmp_path: Path) -> None:
    server, log = Valkey(tmp_path / "redis"), tmp_path / "log"
    environment = environment_of(server, tmp_path) | {"IVMIX_PULSE_FILE": str(tmp_path / "pulse")}
    with running(module, log, **environment) as process:
        wait_for(lambda: "waiting for Redis" in log.read_text() or None, timeout_s=30)
        if module == "service.api":
            url = f"http://127.0.0.1:{environment['IVMIX_PORT']}"
            wait_for(lambda: is_listening(url) or None)
            assert httpx2.get(f"{url}/livez").status_code == 200
            assert httpx2.get(f"{url}/readyz").status_code == 503
        else:
            wait_for(lambda: (tmp_path / "pulse").exists() or None)  # alive
        time.sleep(2.5)  # several attempts
        assert log.read_text().count("waiting for Redis") == 1
        assert "Connection refused" in log.read_text()
        with server:
            wait_for(lambda: "Redis is there" in log.read_text() or None, timeout_s=30)
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)  # uvicorn ends by the signal


@pytest.mark.sample(1)
@pytest.mark.parametrize("module", MODULES)
def test_a_server_that_appears_and_refuses_ends_the_process(module: str, tmp_path: Path) -> None:
    server, log = Valkey(tmp_path / "redis"), tmp_path / "log"
    environment = environment_of(server, tmp_path)
    environment["IVMIX_REDIS_URL"] = server.url.replace("secret", "wrong")
    with running(module, log, **environment) as process:
        wait_for(lambda: "waiting for Redis" in log.read_text() or None, timeout_s=30)
        with server:
            assert process.wait(30) == 1
        assert "ivmix: IVMIX_REDIS_URL" in log.read_text().splitlines()[-1]


@pytest.mark.sample(1)
@pytest.mark.parametrize("module", MODULES)
def test_a_password_that_changes_at_run_time_is_logged_rarely(module: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Valkey(tmp_path / "redis") as server, Redis.from_url(server.url) as admin:
        environment = environment_of(server, tmp_path) | {"IVMIX_LOOK_S": "0.2", "IVMIX_AUTH": "off"}
        url = f"http://127.0.0.1:{environment['IVMIX_PORT']}"
        with running(module, log, **environment) as process:
            users = lambda: len(admin.client_list())  # noqa: E731
            is_up = (lambda: is_ready(url)) if module == "service.api" else lambda: users() > 1
            wait_for(lambda: is_up() or None, timeout_s=30)
            time.sleep(1)  # the check at the start is over
            admin.config_set("requirepass", "another")
            admin.execute_command("CLIENT", "KILL", "SKIPME", "yes")
            began = time.monotonic()
            while time.monotonic() - began < 4:
                if module == "service.api" and is_listening(url):
                    assert httpx2.get(f"{url}/v1/videos").status_code in (200, 503)
                    httpx2.get(f"{url}/readyz")
                time.sleep(0.2)
            assert process.poll() is None
            lines = [line for line in log.read_text().splitlines() if "Authentication" in line]
            assert lines, log.read_text()
            assert len(lines) <= 8, lines  # each place once
            admin.config_set("requirepass", "secret")
            wait_for(lambda: is_up() or None, timeout_s=30)
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(30) in (0, -signal.SIGTERM)
