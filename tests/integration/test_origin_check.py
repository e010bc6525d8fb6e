"""With authentication off, pages of other sites can neither read nor change anything; our own pages and clients can."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from service.api.app import create_app, create_operations_app
from service.settings import Settings
from service.wiring import Services
from tests.conftest import serve
from tests.factories import PROMPT

OUR_HOST = {"host": "127.0.0.1:8000"}
PATHS = (
    ("GET", "/v1/videos"),
    ("GET", "/v1/videos/video_0"),
    ("GET", "/v1/videos/video_0/content"),
    ("GET", "/v1/videos/video_0/events"),
    ("GET", "/v1/events"),
    ("HEAD", "/v1/videos"),
    ("POST", "/v1/videos"),
    ("POST", "/v1/videos/sync"),
    ("POST", "/v1/videos/video_0/cancel"),
    ("DELETE", "/v1/videos/video_0"),
    ("GET", "/v1/webhook_callback_secret"),
    ("POST", "/v1/webhook_callback_secret/rotate_secret"),
    ("GET", "/v1/queue"),
    ("GET", "/v1/models"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/livez"),
    ("OPTIONS", "/v1/videos"),
    ("GET", "/nowhere"),
)

Client = Callable[..., TestClient]


@pytest.fixture
def client_with(services: Services) -> Client:
    """client_with(auth="keys", ...) is a client of an application with these settings and no allowed host."""

    def make(**settings: Any) -> TestClient:
        changed = Settings.model_validate({**services.settings.model_dump(), "allowed_hosts": (), **settings})
        return TestClient(create_app(replace(services, settings=changed)), raise_server_exceptions=False)

    return make


def status(client: TestClient, *, method: str = "GET", path: str = "/v1/videos", **headers: str) -> int:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.request(method, path, headers=OUR_HOST | sent).status_code


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_a_foreign_page_reaches_no_route(client_with: Client, method: str, path: str) -> None:
    client = client_with()
    assert status(client, method=method, path=path, host="attacker.example") == 421
    assert status(client, method=method, path=path, origin="https://attacker.example") == 403
    assert status(client, method=method, path=path, sec_fetch_site="cross-site") == 403


def test_the_error_names_the_setting(client_with: Client) -> None:
    client = client_with()
    error = client.get("/v1/videos", headers={"host": "attacker.example"}).json()["error"]
    assert error["code"] == "host_not_allowed"
    assert "attacker.example" in error["message"]
    assert "IVMIX_ALLOWED_HOSTS" in error["message"]
    error = client.get("/v1/videos", headers=OUR_HOST | {"origin": "null"}).json()["error"]
    assert error["code"] == "origin_not_allowed"
    assert "IVMIX_CORS_ORIGINS" in error["message"]


def test_a_refused_request_changes_nothing(client_with: Client, services: Services) -> None:
    foreign = OUR_HOST | {"origin": "https://attacker.example", "content-type": "text/plain"}
    answer = client_with().post("/v1/videos", headers=foreign, json={"prompt": PROMPT})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    assert services.store.list() == ([], False)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:1",
        "127.8.9.10:8000",
        "localhost",
        "LocalHost:8000",
        "localhost.:8000",
        "[::1]",
        "[::1]:8000",
        "[0:0:0:0:0:0:0:1]:8000",
        "[::ffff:127.0.0.1]:8000",
    ],
)
def test_loopback_names_are_ours(client_with: Client, host: str) -> None:
    assert status(client_with(), host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "attacker.example",
        "ATTACKER.example:8000",
        "attacker.example.",
        "localhost.attacker.example",
        "attacker-localhost",
        "127.0.0.1.attacker.example",
        "127.0.0.1@attacker.example",
        "attacker.example@127.0.0.1",
        "127.0.0.1:80@attacker.example",
        "127.0.0.1:8000:8000",
        "127.0.0.1:",
        "127.0.0.1/",
        "127.0.0.1, attacker.example",
        "http://127.0.0.1",
        "2130706433",
        "0x7f.1",
        "10.0.0.5:8000",
        "192.168.1.20",
        "[::]",
        "[2001:db8::1]",
        "[::1",
        "::1",
        "",
        " ",
    ],
)
def test_every_other_host_is_refused(client_with: Client, host: str) -> None:
    assert status(client_with(), host=host) == 421


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000", 200),
        ("localhost:8000", "http://localhost:8000", 200),
        ("[::1]:8000", "http://[::1]:8000", 200),
        ("localhost", "http://localhost", 200),
        ("localhost", "https://localhost", 200),  # behind a proxy with TLS
        ("localhost:80", "http://localhost", 200),
        ("127.0.0.1:8000", "http://127.0.0.1:3000", 403),
        ("127.0.0.1:8000", "http://127.0.0.1", 403),
        ("127.0.0.1:8000", "http://localhost:8000", 403),
        ("127.0.0.1:8000", "null", 403),
        ("127.0.0.1:8000", "", 403),
        ("127.0.0.1:8000", "http://127.0.0.1:8000@attacker.example", 403),
        ("127.0.0.1:8000", "http://attacker.example@127.0.0.1:8000", 403),
        ("127.0.0.1:8000", "http://127.0.0.1:8000.attacker.example", 403),
        ("127.0.0.1:8000", "http://127.0.0.1:8000/", 403),
        ("127.0.0.1:8000", "http://127.0.0.1:8000 https://attacker.example", 403),
        ("127.0.0.1:8000", "file://127.0.0.1:8000", 403),
        ("127.0.0.1:8000", "chrome-extension://abcdef", 403),
        ("127.0.0.1:8000", "127.0.0.1:8000", 403),
    ],
)
def test_only_the_own_origin_may_call(client_with: Client, host: str, origin: str, expected: int) -> None:
    assert status(client_with(), host=host, origin=origin) == expected


def test_a_page_of_the_same_site_is_foreign(client_with: Client) -> None:
    client = client_with()
    assert status(client, sec_fetch_site="same-origin") == 200
    assert status(client, sec_fetch_site="none") == 200
    assert status(client, sec_fetch_site="same-site") == 403
    assert status(client, sec_fetch_site="anything-new") == 403


def test_a_link_can_be_followed_but_not_embedded_or_submitted(client_with: Client) -> None:
    client = client_with()
    visit = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert status(client, path="/docs", **visit) == 200
    assert status(client, path="/docs", **visit | {"sec_fetch_dest": "iframe"}) == 403
    assert status(client, path="/v1/videos", method="POST", **visit) == 403


class TestConfigured:
    def test_a_configured_origin_may_call_and_embed(self, client_with: Client) -> None:
        client = client_with(cors_origins=("https://dash.example.com",))
        page = {"origin": "https://dash.example.com", "sec_fetch_site": "cross-site"}
        answer = client.get("/v1/videos", headers=OUR_HOST | {name.replace("_", "-"): v for name, v in page.items()})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://dash.example.com"
        asks = {"access_control_request_method": "POST", "access_control_request_headers": "x-api-key"}
        assert status(client, method="OPTIONS", **page, **asks) == 200
        embedded = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors", "sec_fetch_dest": "video"}
        assert status(client, referer="https://dash.example.com/videos", **embedded) == 200
        assert status(client, referer="https://attacker.example/?https://dash.example.com", **embedded) == 403

    @pytest.mark.parametrize(
        "origin",
        [
            "http://dash.example.com",
            "https://dash.example.com:8443",
            "https://dash.example.com.",
            "https://sub.dash.example.com",
            "https://dash.example.com.attacker.example",
        ],
    )
    def test_a_similar_origin_may_not(self, client_with: Client, origin: str) -> None:
        expected = 200 if origin.endswith(".com.") else 403  # the same name, written absolutely
        assert status(client_with(cors_origins=("https://dash.example.com",)), origin=origin) == expected

    def test_allowed_hosts_and_domains(self, client_with: Client) -> None:
        client = client_with(allowed_hosts=("gpu-box", ".svc.cluster.local"))
        for host in ("gpu-box", "GPU-BOX:8000", "api.ivmix.svc.cluster.local.", "127.0.0.1"):
            assert status(client, host=host) == 200, host
        for host in ("gpu-box.attacker.example", "svc.cluster.local.attacker.example", "xgpu-box"):
            assert status(client, host=host) == 421, host

    def test_the_public_url_is_ours(self, client_with: Client) -> None:
        client = client_with(public_base_url="https://video.example.com/ivmix")
        assert status(client, host="video.example.com", origin="https://video.example.com") == 200
        # A proxy that replaces the Host.
        assert status(client, host="127.0.0.1:8000", origin="https://video.example.com") == 200
        assert status(client, host="127.0.0.1:8000", origin="https://attacker.example") == 403

    def test_an_open_server_is_reached_by_address_but_not_by_name(self, client_with: Client) -> None:
        client = client_with(host="0.0.0.0", allow_open=True)
        for host in ("192.168.1.20:8000", "[2001:db8::1]:8000", "0.0.0.0:8000", "localhost:8000"):
            assert status(client, host=host) == 200, host
        assert status(client, host="attacker.example") == 421
        assert status(client, host="192.168.1.20:8000", origin="https://attacker.example") == 403

    def test_with_keys_the_host_is_free_unless_set(self, client_with: Client) -> None:
        assert status(client_with(auth="keys"), host="any.example", origin="https://other.example") == 401
        restricted = client_with(auth="keys", allowed_hosts=("video.example.com",))
        assert status(restricted, host="any.example") == 421
        assert status(restricted, host="video.example.com") == 401

    def test_the_operations_port_checks_too(self, services: Services) -> None:
        settings = services.settings.model_copy(update={"allowed_hosts": ()})
        client = TestClient(create_operations_app(create_app(replace(services, settings=settings))))
        assert status(client, path="/metrics", host="attacker.example") == 421
        assert status(client, path="/metrics") == 200


@pytest.fixture
def address(services: Services) -> Iterator[tuple[str, int]]:
    settings = services.settings.model_copy(update={"allowed_hosts": ()})
    with serve(replace(services, settings=settings)) as url:
        yield "127.0.0.1", int(url.rpartition(":")[2])


def send_raw(address: tuple[str, int], head: str) -> bytes:
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode())
        return connection.makefile("rb").readline()


def test_over_http(address: tuple[str, int]) -> None:
    url = f"http://{address[0]}:{address[1]}"
    assert httpx2.get(f"{url}/v1/videos").status_code == 200
    assert b" 200 " in send_raw(address, "GET /v1/videos HTTP/1.0")  # no Host
    assert b" 421 " in send_raw(address, "GET /v1/videos HTTP/1.1\r\nHost: attacker.example")
    assert b" 421 " in send_raw(address, f"GET {url}/v1/videos HTTP/1.1\r\nHost: attacker.example")
    two_hosts = send_raw(address, "GET /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: attacker.example")
    assert b" 421 " in two_hosts or b" 400 " in two_hosts
    two_origins = f"Origin: {url}\r\nOrigin: https://attacker.example"
    assert b" 403 " in send_raw(address, f"GET /v1/videos HTTP/1.1\r\nHost: 127.0.0.1:{address[1]}\r\n{two_origins}")
