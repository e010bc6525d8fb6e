"""`ivmix up` keeps its embedded server running, and no other command starts a second one while it runs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from redis import Redis

from service.process.embedded_valkey import running_server_url
from tests.integration.test_cli import ivmix
from tests.processes import ivmix_up, session_of, wait_for

ACCEPTING_S = 3.0
GUARD, SERVER = "process_guard.py", "valkey-server"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up") / "data"


@pytest.fixture(scope="module")
def up(data: Path) -> Iterator[tuple[int, str]]:
    """Process id and URL of an `ivmix up` without workers, so that jobs stay queued."""
    with ivmix_up(data, "--workers", "0") as (process, url):
        yield process.pid, url


def running(supervisor: int, name: str) -> int | None:
    """Process id of the guard or of the server, whose title Valkey sets itself."""
    for pid in session_of(supervisor):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if name.encode() in (command[0] if name == SERVER else b" ".join(command[:4])):
            return pid
    return None


@pytest.mark.parametrize("killed", [SERVER, GUARD])
def test_a_killed_server_accepts_again_within_seconds_and_has_lost_nothing(
    killed: str, up: tuple[int, str], data: Path
) -> None:
    supervisor, url = up
    with httpx2.Client(base_url=url) as http:
        before = [http.post("/v1/videos", json={"prompt": "a red circle"}).json()["id"] for _ in range(3)]
        server = running_server_url(data)
        pid = wait_for(lambda: running(supervisor, killed))
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        wait_for(
            lambda: http.post("/v1/videos", json={"prompt": "a red circle"}).status_code == 200 or None, timeout_s=30
        )
        assert time.monotonic() - killed_at < ACCEPTING_S
        assert [http.get(f"/v1/videos/{job}").status_code for job in before] == [200] * 3
        assert running_server_url(data) == server
        assert wait_for(lambda: running(supervisor, killed)) != pid


def test_recover_refuses_to_run_at_the_same_time(up: tuple[int, str], data: Path, tmp_path: Path) -> None:
    run = ivmix("recover", cwd=tmp_path, IVMIX_DATA_DIR=str(data))
    assert (run.returncode, "in use by another ivmix" in run.stderr) == (1, True)
    assert "Traceback" not in run.stderr


@pytest.mark.sample(1)
@pytest.mark.parametrize("change", ["delete", "overwrite", "truncate"])
def test_keys_reach_it_whatever_happened_to_its_configuration(
    change: str, up: tuple[int, str], data: Path, tmp_path: Path
) -> None:
    config = data / "valkey" / "server.conf"
    kept = config.read_text()
    if change == "delete":
        config.unlink()
    else:
        config.write_text("port 1\nrequirepass nonsense\n" if change == "overwrite" else "")
    try:
        made = ivmix("keys", "create", "--name", change, cwd=tmp_path, IVMIX_DATA_DIR=str(data))
        assert made.returncode == 0, made.stderr
        url = running_server_url(data)
        assert url is not None
        with Redis.from_url(url) as redis:
            assert made.stderr.split()[0].encode() in b" ".join(redis.hvals("ivm:keys"))
    finally:
        config.write_text(kept)


@pytest.mark.slow
def test_the_log_says_why_the_server_was_restarted(tmp_path: Path) -> None:
    with ivmix_up(tmp_path / "data", "--workers", "0") as (process, _):
        os.kill(wait_for(lambda: running(process.pid, SERVER)), signal.SIGKILL)
        assert process.stdout is not None
        line = next(line for line in process.stdout if "embedded server ended" in line)
        assert "killed by SIGKILL" in line
        assert "Ready to accept connections" in line  # the end of its log
