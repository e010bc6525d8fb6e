"""deploy/proxies: the real nginx and Caddy in front of the real API, with TLS and an API key as clients have it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.api_keys import KeyStore
from service.settings import Settings
from service.wiring import Services, open_services
from tests.api_process import api_process
from tests.certificates import Certificates
from tests.event_pages import open_page
from tests.factories import PROMPT, finish
from tests.ports import free_port
from tests.reference_calls import PICTURE, send
from tests.reverse_proxies import SERVERS, missing, new_place

VIDEO = bytes(range(256)) * 4096  # a megabyte
MIB = 2**20


@dataclass(frozen=True)
class Proxied:
    services: Services
    folder: Path
    port: int
    plain_port: int
    prefix: str
    certificates: Certificates
    key: str

    def client(self, **options: Any) -> httpx2.Client:
        """Of a client on the internet, which trusts the authority of the certificate only."""
        return httpx2.Client(
            base_url=f"https://localhost:{self.port}{self.prefix}",
            verify=self.certificates.context(),
            headers={"authorization": f"Bearer {self.key}"},
            timeout=30,
            trust_env=False,
            **options,
        )


@pytest.fixture(scope="module", params=["", "/ivmix"], ids=["host", "path"])
def prefix(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def sites(prefix: str, valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Proxied]]:
    """One API behind each of the proxies that this machine has."""
    folder = tmp_path_factory.mktemp("proxies")
    certificates = Certificates.make(folder / "certificates")
    settings = Settings(redis_url=valkey_server, data_dir=folder / "data", auth="keys")
    variables = {"IVMIX_PUBLIC_BASE_URL": "https://localhost", "IVMIX_ROOT_PATH": prefix}
    services = open_services(settings)
    _, secret = KeyStore(services.redis).create("client")
    found: dict[str, Proxied] = {}
    with ExitStack() as running:
        running.callback(services.close)
        api = running.enter_context(api_process(settings, folder, **variables))
        for name, (start, config) in SERVERS.items():
            if not missing(name):
                place = new_place(folder / name, certificates, api.port, free_port())
                running.enter_context(start(config.format("-path" if prefix else ""), place))
                found[name] = Proxied(services, folder, place.port, place.plain_port, prefix, certificates, secret)
        yield found


@pytest.fixture(params=SERVERS)
def proxied(request: pytest.FixtureRequest, sites: dict[str, Proxied]) -> Proxied:
    if request.param not in sites:
        pytest.skip(f"{request.param} is not installed, so its example in deploy/proxies is not run")
    return sites[request.param]


def test_tls_post_and_page(proxied: Proxied) -> None:
    with proxied.client() as http:
        answer = http.post("/v1/videos", json={"prompt": PROMPT})
        assert answer.status_code == 200, answer.text
        assert "strict-transport-security" in answer.headers or proxied.prefix
        page = http.get("/")
        assert f'<base href="{proxied.prefix}/">' in page.text
        assert http.get("/page/style.css").status_code == 200
        # X-Forwarded-Proto arrives: only over TLS is the cookie of a session marked as secure.
        assert "secure" in http.post("/v1/session").headers["set-cookie"].lower()
        assert http.get("/metrics").status_code == 404
    with pytest.raises(ssl.SSLCertVerificationError), socket.create_connection(("127.0.0.1", proxied.port)) as plain:
        ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")  # it does not know the authority


def test_the_address_without_tls_or_slash_leads_to_the_right_one(proxied: Proxied, request: Any) -> None:
    with proxied.client() as http:
        if proxied.prefix:
            answer = http.get(f"https://localhost:{proxied.port}{proxied.prefix}")
            assert answer.is_redirect
            assert answer.headers["location"].endswith(f"{proxied.prefix}/")
        elif "nginx" in request.node.name:  # the redirect of Caddy is its own, on port 80
            answer = http.get(f"http://localhost:{proxied.plain_port}/v1/queue?a=b")
            assert (answer.status_code, answer.headers["location"]) == (301, "https://localhost/v1/queue?a=b")


def test_an_event_arrives_while_the_stream_is_open(proxied: Proxied) -> None:
    """A proxy that collects a response before it passes it on would send nothing before the stream ends."""
    with proxied.client() as http, open_page(http) as page:
        video_id = http.post("/v1/videos", json={"prompt": PROMPT}).json()["id"]
        event = page.next()
        assert (event["data"]["id"], event["data"]["status"]) == (video_id, "queued")


@pytest.mark.parametrize("has_length", [True, False], ids=["length", "chunks"])
def test_an_upload_of_30_megabytes_is_refused_as_the_api_refuses(proxied: Proxied, has_length: bool) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield bytes(MIB)

    content: Any = bytes(30 * MIB) if has_length else chunks()
    headers = {"content-type": "multipart/form-data; boundary=x"}
    with proxied.client() as http:
        answer = http.post("/v1/videos", content=content, headers=headers)
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["error"]["code"] == "body_too_large"
        assert http.get("/v1/videos").status_code == 200  # the same client goes on


def test_the_largest_upload_passes(proxied: Proxied) -> None:
    """20 MiB of a file reach the API, which looks into it; one byte more it refuses itself, with the field's name."""
    largest = proxied.services.settings.max_reference_bytes
    with proxied.client() as http:
        assert send(http, PICTURE).status_code == 200
        for size, status in ((largest, {200, 400}), (largest + 1, {413})):
            answer = send(http, PICTURE + bytes(size - len(PICTURE)))
            assert answer.status_code in status, answer.text
            assert "x-request-id" in answer.headers
        assert answer.json()["error"]["param"] == "input_reference"


def test_a_part_of_a_video(proxied: Proxied) -> None:
    with proxied.client() as http:
        video_id = http.post("/v1/videos", json={"prompt": PROMPT}).json()["id"]
        finish(proxied.services, video_id, VIDEO, scratch=proxied.folder)
        url = f"/v1/videos/{video_id}/content"
        part = http.get(url, headers={"range": "bytes=1000-300999"})
        assert (part.status_code, part.content) == (206, VIDEO[1000:301000])
        assert part.headers["content-range"] == f"bytes 1000-300999/{len(VIDEO)}"
        assert http.get(url).content == VIDEO
        described = http.get(f"/v1/videos/{video_id}").json()["url"]
        assert described.endswith(f"{proxied.prefix}{url}")
