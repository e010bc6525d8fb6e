"""X-Forwarded-For and X-Forwarded-Proto through a real server: believed from IVMIX_TRUSTED_PROXIES only."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import httpx2
import pytest
from fastapi import FastAPI, Request

from service.api.app import create_app
from service.api.server import BoundedServer
from service.settings import Settings
from service.wiring import Services
from tests.factories import PROMPT

PROXY, IN_NETWORK, STRANGER = "127.0.0.2", "127.0.9.77", "127.0.0.3"
TRUSTED = (PROXY, "127.0.9.0/24")
CLIENT = "203.0.113.7"
FORWARDED = {"x-forwarded-for": CLIENT, "x-forwarded-proto": "https"}


@contextmanager
def running(app: FastAPI, settings: Settings) -> Generator[str]:
    server = BoundedServer(app, settings, 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the HTTP server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def client(url: str, source: str) -> httpx2.Client:
    transport = httpx2.HTTPTransport(local_address=source)
    return httpx2.Client(base_url=url, transport=transport, timeout=30)


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    """A server that answers with what the API sees of a request."""
    app = FastAPI()

    @app.get("/")
    def see(request: Request) -> dict[str, str]:
        assert request.client is not None
        return {"client": request.client.host, "url": str(request.url)}

    with running(app, Settings(trusted_proxies=TRUSTED)) as url:
        yield url


@pytest.mark.parametrize("proxy", [PROXY, IN_NETWORK])
def test_a_trusted_proxy_is_believed(echo: str, proxy: str) -> None:
    with client(echo, proxy) as http:
        seen = http.get("/", headers={**FORWARDED, "host": "video.example.com"}).json()
    assert seen == {"client": CLIENT, "url": "https://video.example.com/"}


def test_any_other_client_is_not(echo: str) -> None:
    with client(echo, STRANGER) as http:
        seen = http.get("/", headers={**FORWARDED, "host": "video.example.com"}).json()
    assert seen == {"client": STRANGER, "url": "http://video.example.com/"}


def test_what_the_client_itself_sent_through_the_proxy_is_not_believed(echo: str) -> None:
    """A proxy appends the address that it sees; of a chain of proxies the trusted ones are skipped."""
    with client(echo, PROXY) as http:
        for sent in (f"198.51.100.1, {CLIENT}", f"198.51.100.1, {CLIENT}, 127.0.9.5"):
            assert http.get("/", headers={"x-forwarded-for": sent}).json()["client"] == CLIENT


def test_limits_per_address_count_the_client_behind_the_proxy(services: Services) -> None:
    fields = {"auth": "off", "max_held_per_key": 1, "trusted_proxies": TRUSTED, "host": "127.0.0.1"}
    changed = replace(services, settings=services.settings.model_copy(update=fields))
    with ExitStack() as stack:
        url = stack.enter_context(running(create_app(changed), changed.settings))
        through_proxy, direct = (stack.enter_context(client(url, source)) for source in (PROXY, STRANGER))
        video_id = direct.post("/v1/videos", json={"prompt": PROMPT}).json()["id"]

        def status(http: httpx2.Client, address: str) -> int:
            stream = http.stream("GET", f"/v1/videos/{video_id}/events", headers={"x-forwarded-for": address})
            return stack.enter_context(stream).status_code

        assert [status(through_proxy, a) for a in ("203.0.113.1", "203.0.113.2", "203.0.113.1")] == [200, 200, 429]
        assert [status(direct, a) for a in ("203.0.113.3", "203.0.113.4")] == [200, 429]
