"""Security headers, HEAD, Allow, both slash forms, and the API behind a path prefix or a proxy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from service.api import sse
from service.api.app import create_app
from service.settings import Settings
from service.wiring import Services
from tests.conftest import serve
from tests.factories import PROMPT

Finish = Callable[[str, bytes], None]


def with_settings(services: Services, **settings: Any) -> Services:
    return replace(services, settings=Settings.model_validate({**services.settings.model_dump(), **settings}))


def created(client: TestClient) -> str:
    return client.post("/v1/videos", json={"prompt": PROMPT}).json()["id"]


@pytest.fixture(autouse=True)
def short_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests read every response to its end."""
    monkeypatch.setattr(sse, "MAX_DURATION_S", 0.1)


def get_paths(client: TestClient, video_id: str) -> Iterator[str]:
    """Every described path with a GET, for a video that has ended."""
    ids = {"video_id": video_id, "model": "demo"}
    for template, operations in client.get("/openapi.json").json()["paths"].items():
        if "get" in operations:
            yield re.sub(r"\{(\w+)\}", lambda name: ids.get(name[1], "whe_0"), template)


class TestSecurityHeaders:
    def test_every_response_has_them(self, client: TestClient, finished: Finish) -> None:
        video_id = created(client)
        finished(video_id, b"content")
        paths = [*get_paths(client, video_id), "/docs", "/docs/assets/swagger-ui.css", "/openapi.json", "/nowhere"]
        assert len(paths) > 15
        for path in paths:
            headers = client.get(path).headers
            assert headers["x-content-type-options"] == "nosniff", path
            assert "frame-ancestors 'none'" in headers["content-security-policy"], path
            assert headers["content-security-policy"].startswith("default-src 'none'"), path
            assert headers["referrer-policy"] == "no-referrer", path
            assert headers["cross-origin-resource-policy"] == "same-origin", path

    def test_what_only_one_client_may_see_is_not_stored(self, client: TestClient) -> None:
        video_id = created(client)
        assert client.get(f"/v1/videos/{video_id}").headers["cache-control"] == "no-store"
        assert client.get("/v1/videos").headers["cache-control"] == "no-store"
        assert client.get("/v1/videos/video_0").headers["cache-control"] == "no-store"

    def test_secrets_are_not_stored(self, client: TestClient) -> None:
        body = {"name": "a", "url": "https://93.184.215.14/", "event_types": ["video.completed"]}
        made = client.post("/v1/webhook_endpoints", json=body)
        rotated = client.post(f"/v1/webhook_endpoints/{made.json()['id']}/rotate_secret")
        callback = client.get("/v1/webhook_callback_secret")
        rotated_callback = client.post("/v1/webhook_callback_secret/rotate_secret")
        for answer in (made, rotated, callback, rotated_callback):
            assert answer.json()["signing_secret"].startswith("whsec_")
            assert answer.headers["cache-control"] == "no-store"

    def test_a_video_may_be_kept_by_its_client_only(self, client: TestClient, finished: Finish) -> None:
        video_id = created(client)
        finished(video_id, b"content")
        assert client.get(f"/v1/videos/{video_id}/content").headers["cache-control"] == "private, max-age=3600"

    def test_errors_of_the_server_have_them(self, services: Services) -> None:
        app = create_app(services)
        app.state.polls = None  # a bug
        with TestClient(app, raise_server_exceptions=False) as client:
            answer = client.get("/v1/videos/video_0")
        assert (answer.status_code, answer.headers["cache-control"]) == (500, "no-store")
        assert answer.headers["x-content-type-options"] == "nosniff"

    def test_the_page_may_load_what_it_contains(self, client: TestClient) -> None:
        page = client.get("/docs")
        policy = page.headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "connect-src 'self'" in policy
        loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert loaded
        assert all(url.startswith("/docs/assets/") for url in loaded)  # 'self', no other host


class TestHead:
    def test_head_is_the_head_of_get(self, client: TestClient, finished: Finish) -> None:
        video_id = created(client)
        finished(video_id, b"content")
        for path in (*get_paths(client, video_id), "/docs", "/openapi.json"):
            get, head = client.get(path), client.head(path)
            assert (head.status_code, head.content) == (get.status_code, b""), path
            assert head.headers.get("content-type") == get.headers.get("content-type"), path
            if path != "/metrics":
                assert head.headers.get("content-length") == get.headers.get("content-length"), path

    def test_head_of_an_event_stream_ends(self, services: Services) -> None:
        with serve(services) as url, httpx2.Client(base_url=url, timeout=20) as client:
            video_id = client.post("/v1/videos", json={"prompt": PROMPT}).json()["id"]
            for _ in range(3):  # on one connection
                answer = client.head(f"/v1/videos/{video_id}/events")
                assert answer.status_code == 200
                assert answer.headers["content-type"].startswith("text/event-stream")
            assert client.get("/livez").status_code == 200

    def test_head_is_allowed_across_origins(self, services: Services) -> None:
        changed = with_settings(services, cors_origins=("https://dash.example.com",))
        asks = {"origin": "https://dash.example.com", "access-control-request-method": "HEAD"}
        answer = TestClient(create_app(changed)).options("/v1/videos", headers=asks)
        assert answer.status_code == 200
        assert "HEAD" in answer.headers["access-control-allow-methods"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/videos", {"GET", "HEAD", "POST"}),
        ("PATCH", "/v1/videos/video_0", {"GET", "HEAD", "DELETE"}),
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("DELETE", "/v1/webhook_endpoints", {"GET", "HEAD", "POST"}),
        ("GET", "/v1/videos/video_0/cancel", {"POST"}),
        ("HEAD", "/v1/videos/video_0/cancel", {"POST"}),
        ("POST", "/livez", {"GET", "HEAD"}),
        ("BREW", "/v1/queue", {"GET", "HEAD"}),
        ("POST", "/docs", {"GET", "HEAD"}),
    ],
)
def test_405_has_one_allow_header_with_every_method(
    client: TestClient, method: str, path: str, allowed: set[str]
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 405
    (allow,) = answer.headers.get_list("allow")
    assert set(allow.split(", ")) == allowed


class TestSlashes:
    def test_both_forms_are_answered_without_a_redirect(self, client: TestClient, finished: Finish) -> None:
        video_id = created(client)
        finished(video_id, b"content")
        for path in (*get_paths(client, video_id), "/docs", "/openapi.json"):
            plain = client.get(path, follow_redirects=False)
            slash = client.get(f"{path}/", follow_redirects=False)
            assert slash.status_code == plain.status_code, path
            assert slash.status_code not in (301, 302, 307, 308)

    def test_a_post_keeps_its_body(self, client: TestClient) -> None:
        answer = client.post("/v1/videos/", json={"prompt": PROMPT}, follow_redirects=False)
        assert answer.status_code == 200
        again = client.post(f"/v1/videos/{answer.json()['id']}/cancel/", follow_redirects=False)
        assert again.json()["id"] == answer.json()["id"]
        assert client.delete(f"/v1/videos/{answer.json()['id']}/", follow_redirects=False).status_code == 200

    @pytest.mark.parametrize("path", ["//", "/v1/videos//", "/v1//videos", "//v1/videos", "//attacker.example/v1/"])
    def test_other_forms_are_404(self, client: TestClient, path: str) -> None:
        answer = client.request("GET", f"http://testserver{path}", follow_redirects=False)
        assert answer.status_code == 404
        assert "location" not in answer.headers


class TestPrefix:
    @pytest.fixture
    def prefixed(self, services: Services) -> Iterator[TestClient]:
        changed = with_settings(services, root_path="/tools/ivmix", public_base_url="https://video.example.com")
        with TestClient(create_app(changed)) as client:
            yield client

    @pytest.mark.parametrize("prefix", ["/tools/ivmix", ""])
    def test_the_proxy_may_keep_or_remove_it(self, prefixed: TestClient, prefix: str) -> None:
        made = prefixed.post(f"{prefix}/v1/videos", json={"prompt": PROMPT}).json()
        assert prefixed.get(f"{prefix}/v1/videos/{made['id']}/").json()["id"] == made["id"]
        assert prefixed.get(f"{prefix}/livez").status_code == 200
        assert prefixed.get(f"{prefix}/v1/videos?modle=x").status_code == 400
        refused = prefixed.put(f"{prefix}/v1/videos")
        assert set(refused.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}

    def test_the_page_works_under_it(self, prefixed: TestClient) -> None:
        page = prefixed.get("/tools/ivmix/docs").text
        assert "url: '/tools/ivmix/openapi.json'" in page
        for url in re.findall(r'(?:src|href)="([^"]+)"', page):
            assert url.startswith("/tools/ivmix/docs/assets/")
            assert prefixed.get(url).status_code == 200
        described = prefixed.get("/tools/ivmix/openapi.json").json()
        assert described["servers"] == [{"url": "/tools/ivmix"}]

    def test_a_path_that_only_begins_like_it_is_unknown(self, prefixed: TestClient) -> None:
        assert prefixed.get("/tools/ivmixer/v1/videos").status_code == 404
        assert prefixed.get("/tools/ivmix/tools/ivmix/v1/videos").status_code == 404

    @pytest.mark.parametrize("base", ["https://video.example.com", "https://video.example.com/tools/ivmix/"])
    def test_urls_contain_it_once(self, services: Services, finished: Finish, base: str) -> None:
        changed = with_settings(services, root_path="/tools/ivmix", public_base_url=base)
        with TestClient(create_app(changed)) as client:
            video_id = created(client)
            finished(video_id, b"content")
            expected = f"https://video.example.com/tools/ivmix/v1/videos/{video_id}/content"
            assert client.get(f"/v1/videos/{video_id}").json()["url"] == expected
