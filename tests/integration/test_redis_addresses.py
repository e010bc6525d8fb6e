"""A socket, TLS and client certificates, from the settings to real servers. Valkey's wheel has no TLS, so it runs
behind a TLS front. Sentinels: test_failover.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from service.errors import ConfigurationError
from service.jobs.rq_queues import generate_queue
from service.redis_connection.check import check_redis
from service.redis_connection.client import open_redis
from service.settings import Settings, load_settings
from service.wiring import open_services
from tests.certificates import Certificates
from tests.commands import ivmix_here
from tests.factories import make_job
from tests.polling import polled
from tests.processes import clean_environment
from tests.tls_front import TlsFront
from tests.valkey import Valkey


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    folder = tmp_path_factory.mktemp("redis")
    with Valkey(folder, more=f'unixsocket "{folder}/s"\nunixsocketperm 700\n') as running:
        yield running


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def port(server: Valkey, certificates: Certificates) -> Iterator[int]:
    """Of a server that asks for a client certificate."""
    with TlsFront(server.port, certificates, asks_for_certificate=True) as opened:
        yield opened


def files(certificates: Certificates) -> dict[str, str]:
    authority, (certificate, key) = certificates.authority, certificates.client
    return {"redis_ca_file": str(authority), "redis_cert_file": str(certificate), "redis_key_file": str(key)}


@pytest.fixture(params=["unix", "tls"])
def given(request: pytest.FixtureRequest, server: Valkey, certificates: Certificates, port: int) -> dict[str, str]:
    if request.param == "unix":
        return {"redis_url": f"unix://:secret@{server.folder}/s?db=1"}
    return {"redis_url": f"rediss://:secret@localhost:{port}/1", **files(certificates)}


def test_every_kind_of_client_connects(given: dict[str, str], tmp_path: Path) -> None:
    """The API's, its probe, a worker's, and the check at the start."""
    fields: dict[str, Any] = {**given, "data_dir": tmp_path}
    settings = Settings(**fields)
    with closing(open_services(settings)) as services:
        check_redis(services.redis_url)
        job = services.store.create(make_job(), generate_queue(services.redis, "demo"))
        assert services.probe.ping()
        assert polled(services, job.id) == job
        with open_redis(services.redis_url, reply_timeout_s=None) as redis:
            assert job.id in generate_queue(redis, "demo").job_ids


def test_the_command_line_connects(given: dict[str, str], tmp_path: Path) -> None:
    environment = {f"IVMIX_{name.upper()}": value for name, value in given.items()}
    environment |= clean_environment() | {"IVMIX_DATA_DIR": str(tmp_path)}
    ran = ivmix_here("keys", "create", "--name", "dashboard", cwd=tmp_path, environment=environment)
    assert (ran.returncode, ran.stdout.startswith("ivmix_")) == (0, True), ran.stderr


@pytest.mark.parametrize(
    ("without", "words"),
    [
        (("redis_ca_file",), "; set IVMIX_REDIS_CA_FILE to its CA"),
        (("redis_cert_file", "redis_key_file"), "requires a client certificate; set IVMIX_REDIS_CERT_FILE"),
    ],
)
def test_missing_files_are_named(without: tuple[str, ...], words: str, port: int, certificates: Certificates) -> None:
    fields: dict[str, Any] = {name: path for name, path in files(certificates).items() if name not in without}
    address = Settings(redis_url=f"rediss://:secret@localhost:{port}/1", **fields).redis_address
    assert address is not None
    with pytest.raises(ConfigurationError) as raised:
        check_redis(address)
    assert words in raised.value.message
    assert "secret" not in raised.value.message


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"REDIS_URL": "redis://h"}, "does not use TLS; let it begin with rediss://"),
        ({"REDIS_URL": "rediss://h?ssl_ca_certs=/x"}, "IVMIX_REDIS_CA_FILE is set, and IVMIX_REDIS_URL contains"),
        ({"REDIS_URL": "rediss://h", "REDIS_KEY_FILE": __file__}, "belong together; set both or none"),
        (
            {"REDIS_URL": "rediss://h", "REDIS_SENTINEL_PASSWORD": "hush"},
            "IVMIX_REDIS_SENTINEL_PASSWORD is set, but IVMIX_REDIS_URL names no Sentinels",
        ),
    ],
)
def test_settings_that_do_not_fit(given: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"REDIS_CA_FILE": __file__, **given}.items():
        monkeypatch.setenv(f"IVMIX_{name}", value)
    with pytest.raises(ConfigurationError) as raised:
        load_settings()
    assert words in raised.value.message
    assert "hush" not in raised.value.message


def test_the_embedded_server_has_no_replicas_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every new video would get 503."""
    monkeypatch.delenv("IVMIX_REDIS_URL", raising=False)
    monkeypatch.setenv("IVMIX_REDIS_WAIT_REPLICAS", "1")
    with pytest.raises(ConfigurationError, match=r"IVMIX_REDIS_WAIT_REPLICAS=1 is set, but IVMIX_REDIS_URL is not"):
        load_settings()
