"""What systemd receives from a process with Type=notify."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.process.heartbeat_file import HeartbeatFile
from service.process.service_manager import ServiceManager
from service.settings import Settings
from tests.processes import started


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(60)
        yield listener


def test_maintenance_reports_its_start_and_then_its_main_loop(systemd: socket.socket, settings: Settings) -> None:
    assert settings.redis_url is not None
    environment = {
        "IVMIX_REDIS_URL": settings.redis_url,
        "IVMIX_DATA_DIR": str(settings.data_dir),
        "NOTIFY_SOCKET": systemd.getsockname(),
    }
    with started(environment, "service.maintenance"):
        assert systemd.recv(1000) == b"READY=1\nWATCHDOG=1"
        assert systemd.recv(1000) == b"WATCHDOG=1"


def test_a_worker_reports_whether_its_models_are_loaded(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.getsockname())
    heartbeat = HeartbeatFile.of_process(None)
    heartbeat.set_ready(is_ready=False)
    heartbeat.beat()
    heartbeat.set_ready(is_ready=True)
    expected = [b"STATUS=loading the models", b"READY=1\nWATCHDOG=1", b"STATUS=models loaded"]
    assert [systemd.recv(1000) for _ in expected] == expected


def test_abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0ivmix-test")
        listener.settimeout(10)
        ServiceManager("@ivmix-test").beat()
        assert listener.recv(1000) == b"READY=1\nWATCHDOG=1"


@pytest.mark.parametrize("address", [None, "/nonexistent/notify", "x" * 500])
def test_without_systemd_a_beat_does_nothing(address: str | None) -> None:
    ServiceManager(address).beat()
    HeartbeatFile().beat()


def test_a_manager_that_does_not_read_stops_nothing(systemd: socket.socket) -> None:
    manager = ServiceManager(systemd.getsockname())
    for _ in range(2000):  # more than the socket's buffer holds
        manager.beat()
