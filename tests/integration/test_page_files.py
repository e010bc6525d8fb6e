"""The static files of the page: who may load them, what they may load, and how they are kept in a cache."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.api.app import create_app
from service.api.routes.page import STATIC, static_files
from service.settings import Settings
from service.wiring import open_services
from tests.api_calls import error_of, services_for

MOST_BYTES = 150_000  # compressed, everything that a first visit may load


@pytest.fixture
def settings(valkey: str, tmp_path: Path) -> Settings:
    return Settings(redis_url=valkey, data_dir=tmp_path)  # API keys are required, which the page must not need


def policy(client: TestClient, path: str = "/") -> dict[str, set[str]]:
    header = client.get(path).headers["content-security-policy"]
    return {name: set(values) for name, *values in (part.split() for part in header.split(";"))}


def test_the_page_needs_no_key_and_may_run_its_own_scripts_only(client: TestClient) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["x-content-type-options"] == "nosniff"
    allowed = policy(client)
    assert allowed["default-src"] == allowed["frame-ancestors"] == {"'none'"}
    assert allowed["script-src"] == allowed["style-src"] == allowed["connect-src"] == {"'self'"}
    assert allowed["img-src"] == allowed["media-src"] == {"'self'", "blob:"}


def test_every_file_that_the_page_names_is_served(client: TestClient) -> None:
    html = client.get("/").text
    named = set(re.findall(r'(?:href|src)="(page/[^"]+)"', html))
    scripts = {f"page/{name}" for name in static_files() if name.endswith(".js") and name != "embed.js"}
    assert scripts <= named, "a script without modulepreload is loaded after the one that imports it"
    for path in named:
        assert client.get(f"/{path}").status_code == 200, path


def test_a_browser_loads_a_file_once(client: TestClient) -> None:
    first = client.get("/page/app.js")
    assert (first.headers["content-encoding"], first.headers["cache-control"]) == ("gzip", "no-cache")
    assert first.content == (STATIC / "app.js").read_bytes()
    plain = client.get("/page/app.js", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == first.content
    again = client.get("/page/app.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_page_knows_without_a_request_that_there_is_no_session(client: TestClient) -> None:
    typed, linked = {"sec-fetch-site": "none"}, {"sec-fetch-site": "cross-site"}
    assert "data-signed-out" in client.get("/", headers=typed).text
    assert "data-signed-out" not in client.get("/", headers=linked).text
    assert "data-signed-out" not in client.get("/", headers=typed | {"cookie": "ivmix_session=any"}).text


@pytest.mark.parametrize(
    "path", ["/page/none.js", "/page/index.html", "/page/../page.py", "/page/%2e%2e/page.py", "/page"]
)
def test_other_files_are_not_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("path", ["/tools/ivmix", "/tools/ivmix/", "/"], ids=["no slash", "slash", "removed by proxy"])
def test_the_page_works_under_a_prefix(settings: Settings, path: str) -> None:
    with services_for(settings.model_copy(update={"root_path": "/tools/ivmix"})) as services:
        client = TestClient(create_app(services))
        assert '<base href="/tools/ivmix/">' in client.get(path).text
        assert client.get("/tools/ivmix/page/app.js").status_code == 200


def test_the_page_can_be_turned_off(settings: Settings) -> None:
    with services_for(settings.model_copy(update={"page": False})) as services:
        client = TestClient(create_app(services))
        for path in ("/", "/page/app.js", "/embed.js"):
            assert error_of(client.get(path), 404)["code"] == "unsupported_endpoint"
        assert client.get("/docs").status_code == 200


def test_videos_may_come_from_the_storage_and_the_public_address(s3: Settings) -> None:
    base = {"public_base_url": "https://video.example.com/api", "s3_public_endpoint_url": "https://s3.example.com"}
    services = open_services(Settings.model_validate({**s3.model_dump(), **base}))
    allowed = policy(TestClient(create_app(services)))
    services.close()
    assert (
        allowed["media-src"]
        == allowed["img-src"]
        == {"'self'", "blob:", "https://video.example.com", "https://s3.example.com"}
    )
    assert allowed["connect-src"] == {"'self'"}


def test_without_credentials_for_the_storage_the_page_is_shown(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3 = {"storage": "s3", "s3_bucket": "videos", "s3_endpoint_url": "http://127.0.0.1:9"}
    services = open_services(Settings.model_validate({**settings.model_dump(), **s3}))
    assert policy(TestClient(create_app(services)))["media-src"] == {"'self'", "blob:"}
    services.close()


def test_the_page_is_light(capsys: pytest.CaptureFixture[str]) -> None:
    loaded = {name: len(file.compressed) for name, file in static_files().items() if not name.endswith(".txt")}
    with capsys.disabled():
        print(f"\npage: {sum(loaded.values()) / 1000:.1f} kB compressed, {len(loaded)} files")
    assert sum(loaded.values()) <= MOST_BYTES


def test_the_vendored_library_is_the_noted_one() -> None:
    folder = STATIC / "vendor"
    noted = dict(re.findall(r"^\| `([\w-]+\.js)`.* `([0-9a-f]{64})` \|$", (folder / "README.md").read_text(), re.M))
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.js")}
    assert noted == found
