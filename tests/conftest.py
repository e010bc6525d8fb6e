"""Fixtures that start real parts: a Valkey, S3 servers, the application and its HTTP server."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import uvicorn
from fastapi.testclient import TestClient
from redis import Redis
from rq import Queue

from service.jobs.rq_queues import generate_queue
from service.jobs.store import JobStore
from service.process.embedded_valkey import EmbeddedValkey
from service.process.quick_imports import quick_imports
from service.settings import PREFIX, Settings
from service.wiring import Services, open_services
from tests.certificates import Certificates
from tests.dispatching import dispatching
from tests.factories import finish
from tests.processes import ivmix_up, light_engine
from tests.quick_app import quick_app
from tests.sampling import mark_unsampled
from tests.seaweed import KEYS as SEAWEED_KEYS
from tests.seaweed import SeaweedServer
from tests.swift import ACCESS_KEY, SECRET_KEY, SwiftServer, admin_client

# Fixed examples and no deadline, so that results do not depend on the run or the machine's load. `make test` takes the
# profile "few", a plain pytest "ci" with a hundred, and `make soak` "new", whose examples differ in every run.
FIXED = hypothesis.settings.get_profile("ci")
hypothesis.settings.register_profile("few", FIXED, max_examples=20)
hypothesis.settings.register_profile("new", FIXED, derandomize=False)
hypothesis.settings.load_profile("ci")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Every test module is imported: all libraries, in every process of xdist."""
    with quick_imports():
        return (yield)


@pytest.hookimpl(tryfirst=True)  # before `-m` deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `sample` leaves to `make soak`. Tests that share a server come first, so that one process starts it."""
    mark_unsampled(items)
    servers = ("demo_server", "drawing_server", "swift_server", "s3_server", "site")

    def place(item: pytest.Item) -> list[bool]:
        return [name not in getattr(item, "fixturenames", ()) for name in servers]

    items.sort(key=place)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the developer's IVMIX_ variables, so that they do not affect tests."""
    for name in os.environ:
        if name.startswith(PREFIX) and name != f"{PREFIX}REDIS_SERVER":
            monkeypatch.delenv(name)
    monkeypatch.setenv(f"{PREFIX}ALLOWED_HOSTS", "testserver")  # the Host that TestClient sends


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture
def valkey(valkey_server: str) -> str:
    """URL of a real, empty Valkey."""
    with Redis.from_url(valkey_server) as redis:
        redis.flushall()
    return valkey_server


@pytest.fixture
def settings(valkey: str, tmp_path: Path) -> Settings:
    return Settings(redis_url=valkey, data_dir=tmp_path / "data", auth="off")


@pytest.fixture
def services(settings: Settings) -> Iterator[Services]:
    opened = open_services(settings)
    yield opened
    opened.close()


@pytest.fixture
def store(services: Services) -> JobStore:
    return services.store


@pytest.fixture
def queue(services: Services) -> Queue:
    """The queue of the demo models."""
    return generate_queue(services.redis, "demo")


@pytest.fixture
def client(services: Services) -> Iterator[TestClient]:
    """Client of the application in this process. Exceptions become responses, as for a real client."""
    with TestClient(quick_app(services), raise_server_exceptions=False) as http:
        yield http


@pytest.fixture
def finished(services: Services, tmp_path: Path) -> Callable[[str, bytes], None]:
    """finished(job_id, content) completes a queued job as a worker would, with files in the storage."""
    return lambda job_id, content: finish(services, job_id, content, scratch=tmp_path)


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of an `ivmix up` with a worker and the demo models, for tests that only use it."""
    with ivmix_up(tmp_path_factory.mktemp("demo_server")) as (_, url):
        yield url


@pytest.fixture(scope="session")
def drawing_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of an `ivmix up` whose worker draws squares at once, for clients that only need some clip."""
    with ivmix_up(tmp_path_factory.mktemp("drawing_server"), **light_engine()) as (_, url):
        yield url


@pytest.fixture
def dispatcher(services: Services) -> Iterator[None]:
    """A webhook dispatcher runs."""
    with dispatching(services):
        yield


@pytest.fixture
def server(services: Services) -> Iterator[str]:
    """Base URL of a real HTTP server on a free port."""
    with serve(services) as url:
        yield url


@dataclass
class serve:  # noqa: N801  # reads as a verb where it is used
    services: Services

    def __enter__(self) -> str:
        config = uvicorn.Config(
            quick_app(self.services), port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=1
        )
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._uvicorn.run, daemon=True)
        self._thread.start()
        while not self._uvicorn.started:
            assert self._thread.is_alive(), "the HTTP server did not start"
            time.sleep(0.01)
        port = self._uvicorn.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def __exit__(self, *_: object) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(10)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer  # takes a second to import, and few tests need it

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def swift_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    certificates = Certificates.make(tmp_path_factory.mktemp("certificates"))
    with SwiftServer(tmp_path_factory.mktemp("swift"), certificates) as server:
        yield server


@pytest.fixture(scope="session")
def seaweed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    with SeaweedServer(tmp_path_factory.mktemp("seaweed") / "server") as server:
        yield server


@pytest.fixture
def s3(s3_server: str, settings: Settings) -> Settings:
    """Settings for moto with a new, empty bucket. Fast, but moto accepts almost everything."""
    return with_bucket(settings, s3_endpoint_url=s3_server, s3_access_key_id="test", s3_secret_access_key="test")


@pytest.fixture
def swift(swift_server: SwiftServer, settings: Settings) -> Settings:
    """Settings for Swift, a real S3 server, with a new, empty bucket."""
    return with_bucket(
        settings, s3_endpoint_url=swift_server.url, s3_access_key_id=ACCESS_KEY, s3_secret_access_key=SECRET_KEY
    )


@pytest.fixture
def seaweed(seaweed_server: SeaweedServer, settings: Settings) -> Settings:
    """Settings for SeaweedFS with a new, empty bucket; for slow tests."""
    access_key, secret = SEAWEED_KEYS
    url = seaweed_server.url
    return with_bucket(settings, s3_endpoint_url=url, s3_access_key_id=access_key, s3_secret_access_key=secret)


@pytest.fixture
def swift_tls(swift_server: SwiftServer, swift: Settings) -> Settings:
    """Settings for the same Swift server over TLS."""
    tls = {"s3_endpoint_url": swift_server.tls_url, "s3_ca_file": swift_server.certificates.authority}
    return Settings.model_validate({**swift.model_dump(), **tls})


def with_bucket(settings: Settings, **s3: str) -> Settings:
    bucket = f"videos-{secrets.token_hex(8)}"
    changed = Settings.model_validate({**settings.model_dump(), "storage": "s3", "s3_bucket": bucket, **s3})
    with closing(open_s3(changed)) as client:
        client.create_bucket(Bucket=bucket)
    return changed


def open_s3(settings: Settings) -> Any:  # boto3 has no types
    """A plain boto3 client with administrator rights."""
    assert settings.s3_endpoint_url is not None
    assert settings.s3_access_key_id is not None
    assert settings.s3_secret_access_key is not None
    secret = settings.s3_secret_access_key.get_secret_value()
    return admin_client(settings.s3_endpoint_url, (settings.s3_access_key_id, secret), settings.s3_ca_file)
