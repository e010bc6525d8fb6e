"""The start of an API process, and the settings with which it refuses to start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from service.api.app import create_app
from service.errors import ConfigurationError
from service.redis_connection.client import open_redis
from service.settings import Settings
from service.wiring import Services, open_services
from tests.ports import free_port


def test_a_server_open_to_others_without_authentication_does_not_start(services: Services) -> None:
    open_to_all = replace(services, settings=services.settings.model_copy(update={"host": "0.0.0.0"}))
    with pytest.raises(ConfigurationError, match="IVMIX_ALLOW_OPEN"):
        create_app(open_to_all)


@pytest.mark.parametrize("url", ["localhost:6379", "redis://localhost:many"])
def test_an_invalid_redis_url_is_refused_by_name(settings: Settings, url: str) -> None:
    with pytest.raises(ConfigurationError, match="IVMIX_REDIS_URL"):
        open_services(settings.model_copy(update={"redis_url": url}))


def test_redis_can_be_a_socket(tmp_path: Path) -> None:
    with open_redis(f"unix://{tmp_path}/s") as redis, pytest.raises(RedisConnectionError, match="/s"):
        redis.ping()


def test_without_redis_in_the_settings_nothing_starts(settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match="IVMIX_REDIS_URL"):
        open_services(settings.model_copy(update={"redis_url": None}))


def test_the_module_serves_until_sigterm(settings: Settings) -> None:
    """`python -m service.api` as an operator starts it."""
    port = free_port()
    environment = os.environ | {
        "IVMIX_REDIS_URL": str(settings.redis_url),
        "IVMIX_DATA_DIR": str(settings.data_dir),
        "IVMIX_PORT": str(port),
    }
    with subprocess.Popen([sys.executable, "-m", "service.api"], env=environment) as process:
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    assert httpx2.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).json() == {"status": "ok"}
                    break
                except httpx2.ConnectError:
                    assert time.monotonic() < deadline
                    assert process.poll() is None
                    time.sleep(0.1)
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, -signal.SIGTERM)


def test_the_module_prints_one_line_about_a_missing_setting() -> None:
    ran = subprocess.run([sys.executable, "-m", "service.api"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.strip().splitlines()[-1].startswith("ivmix: IVMIX_REDIS_URL is not set")
    assert "Traceback" not in ran.stderr
