"""What a browser carries instead of an API key: signed URLs of files, and the cookie of a session."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from fastapi.testclient import TestClient

from service import signatures
from service.api import sessions
from service.api_keys import Scope
from service.settings import Settings
from service.wire import file_urls
from service.wiring import Services
from tests.api_calls import answer_of, create, error_of, services_for
from tests.processes import wait_for
from tests.valkey import Valkey

Finish = Callable[[str, bytes], None]
VIDEO = bytes(range(256)) * 10


@pytest.fixture
def settings(valkey: str, tmp_path: Path) -> Settings:
    return Settings(redis_url=valkey, data_dir=tmp_path)  # API keys are required by default


@pytest.fixture
def key(services: Services) -> str:
    return services.keys.create("dashboard")[1]


@pytest.fixture
def headers(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def video(client: TestClient, headers: dict[str, str], finished: Finish) -> dict[str, Any]:
    """A completed video, as its owner sees it."""
    client.headers.update(headers)
    made = create(client)
    finished(made["id"], VIDEO)
    shown = answer_of(client.get(f"/v1/videos/{made['id']}"))
    del client.headers["authorization"]
    return shown


class TestSignedUrls:
    def test_play_without_a_key_with_ranges(self, client: TestClient, video: dict[str, Any]) -> None:
        whole = client.get(video["download_url"])
        assert (whole.status_code, whole.content) == (200, VIDEO)
        part = client.get(video["download_url"], headers={"range": "bytes=5-9"})
        assert (part.status_code, part.content) == (206, VIDEO[5:10])
        assert client.head(video["download_url"]).status_code == 200
        assert client.get(video["thumbnail_url"]).content == b"thumbnail of " + VIDEO
        assert video["spritesheet_url"] is None  # it has none

    def test_hold_no_key_and_stay_the_same_while_a_page_polls(
        self, client: TestClient, video: dict[str, Any], key: str, headers: dict[str, str]
    ) -> None:
        assert key not in str(video)
        again = answer_of(client.get(f"/v1/videos/{video['id']}", headers=headers))
        listed = answer_of(client.get("/v1/videos", headers=headers))["data"][0]
        assert again["download_url"] == listed["download_url"] == video["download_url"]

    def test_live_one_to_one_and_a_half_lifetimes(self, video: dict[str, Any], settings: Settings) -> None:
        left = video["download_url_expires_at"] - time.time()
        assert settings.presign_seconds <= left <= 1.5 * settings.presign_seconds + 1

    @pytest.mark.parametrize("change", ["id", "variant", "expires", "signature", "no expires", "no signature value"])
    def test_are_refused_when_changed(
        self, client: TestClient, video: dict[str, Any], headers: dict[str, str], finished: Finish, change: str
    ) -> None:
        client.headers.update(headers)
        other = create(client)["id"]
        finished(other, b"another")
        del client.headers["authorization"]
        path, query = urlsplit(video["download_url"])[2:4]
        changed = {
            "id": (path.replace(video["id"], other), query),
            "variant": (path, f"variant=thumbnail&{query}"),
            "expires": (path, re.sub(r"expires=(\d)", r"expires=9\1", query)),
            "signature": (path, query[:-1] + ("A" if query[-1] != "A" else "B")),
            "no expires": (path, re.sub(r"expires=\d+&", "", query)),
            "no signature value": (path, re.sub(r"signature=.*", "signature=%FF", query)),
        }
        answer = client.get("?".join(changed[change]))
        assert error_of(answer, 403)["code"] == "url_not_valid"
        assert VIDEO not in answer.content

    def test_are_in_no_log_line(
        self, client: TestClient, video: dict[str, Any], caplog: pytest.LogCaptureFixture, services: Services
    ) -> None:
        """Nor are they when they are refused, or when the storage fails."""
        caplog.set_level(logging.DEBUG)
        url = video["download_url"]
        assert [client.get(path).status_code for path in (url, url + "x")] == [200, 403]
        for file in services.settings.data_dir.rglob("*.mp4"):
            file.unlink()
        assert client.get(url).status_code in (404, 503)
        ours = [record.getMessage() for record in caplog.records if not record.name.startswith("httpx")]
        assert not [line for line in ours if "signature=" in line or "expires=" in line]

    def test_expire(self, client: TestClient, video: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        now = time.time
        monkeypatch.setattr(file_urls.time, "time", lambda: now() + 2 * 3600)
        assert "expired" in error_of(client.get(video["download_url"]), 403)["message"]

    def test_of_a_key_without_access_to_the_video_are_never_given(
        self, client: TestClient, video: dict[str, Any], services: Services
    ) -> None:
        other = {"authorization": f"Bearer {services.keys.create('other')[1]}"}
        assert client.get(f"/v1/videos/{video['id']}", headers=other).status_code == 404

    def test_of_a_deleted_video_are_404(
        self, client: TestClient, video: dict[str, Any], headers: dict[str, str]
    ) -> None:
        client.delete(f"/v1/videos/{video['id']}", headers=headers)
        assert client.get(video["download_url"]).status_code == 404

    def test_are_valid_in_every_process_and_made_anew_after_a_loss_of_redis(self, services: Services) -> None:
        first, second = (signatures.Signer(services.redis) for _ in range(2))
        signed = first.sign("file", "x")
        assert second.is_valid(signed, "file", "x")
        assert not second.is_valid(signed, "session", "x")
        assert not second.is_valid(signed, "filex", "")
        services.redis.flushall()
        later = signatures.Signer(services.redis)
        assert not later.is_valid(signed, "file", "x")

    def test_are_made_and_checked_without_waiting_for_redis(
        self, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Signatures are computed in the event loop, which a silent Redis must not stop."""
        monkeypatch.setattr(signatures, "CACHE_S", 0.0)
        with (
            Valkey(tmp_path / "redis") as valkey,
            services_for(settings.model_copy(update={"redis_url": valkey.url})) as services,
        ):
            signer, redis = services.signer, services.redis
            signed = signer.sign("file", "x")
            redis.delete(signatures.SECRET_KEY)
            valkey.freeze()
            began = time.monotonic()
            assert signer.is_valid(signed, "file", "x")
            assert time.monotonic() - began < 1
            valkey.thaw()
            wait_for(lambda: not signer.is_valid(signed, "file", "x") or None)  # it has read the new one


def session_of(client: TestClient, headers: dict[str, str]) -> SimpleCookie:
    answer = client.post("/v1/session", headers=headers)
    assert answer_of(answer)["name"] == "dashboard"
    client.cookies.clear()  # the tests send it themselves
    return SimpleCookie(answer.headers["set-cookie"])


@pytest.fixture
def cookie(client: TestClient, headers: dict[str, str]) -> dict[str, str]:
    return {"cookie": f"{sessions.COOKIE}={session_of(client, headers)[sessions.COOKIE].value}"}


SAME = {"origin": "http://testserver"}


class TestSessions:
    def test_the_cookie_is_for_pages_of_this_server_and_not_for_scripts(
        self, client: TestClient, headers: dict[str, str], key: str
    ) -> None:
        morsel = session_of(client, headers)[sessions.COOKIE]
        assert (morsel["httponly"], morsel["samesite"], morsel["path"], morsel["secure"]) == (True, "strict", "/", "")
        assert key not in morsel.value
        with TestClient(client.app, base_url="https://testserver") as tls:
            tls_cookie = SimpleCookie(tls.post("/v1/session", headers=headers).headers["set-cookie"])
        assert tls_cookie[sessions.COOKIE]["secure"] is True

    def test_it_reads_and_writes_like_the_key(self, client: TestClient, cookie: dict[str, str]) -> None:
        made = answer_of(client.post("/v1/videos", json={"prompt": "a red circle"}, headers=cookie | SAME))
        assert answer_of(client.get("/v1/videos", headers=cookie))["data"][0]["id"] == made["id"]
        shown = answer_of(client.get("/v1/session", headers=cookie))
        assert (shown["name"], shown["auth"]) == ("dashboard", "keys")
        assert shown["expires_at"] > time.time()

    @pytest.mark.parametrize(
        "origin",
        [
            {},
            {"origin": "http://sub.testserver"},
            {"origin": "null"},
            {"origin": "http://testserver", "sec-fetch-site": "same-site"},
        ],
    )
    def test_other_pages_cannot_use_it_to_change_anything(
        self, client: TestClient, cookie: dict[str, str], origin: dict[str, str]
    ) -> None:
        answer = client.post("/v1/videos", json={"prompt": "a red circle"}, headers=cookie | origin)
        assert answer.status_code == 401
        assert answer_of(client.get("/v1/videos", headers=cookie))["data"] == []

    def test_it_ends_with_its_key(self, client: TestClient, cookie: dict[str, str], services: Services) -> None:
        [(key, _)] = services.keys.list()
        services.keys.revoke(key.id)
        services.keys._cache.clear()
        assert client.get("/v1/videos", headers=cookie).status_code == 401

    @pytest.mark.parametrize("change", ["key", "expiry", "signature", "nothing in it"])
    def test_a_changed_one_is_refused(self, client: TestClient, cookie: dict[str, str], change: str) -> None:
        name, _, value = cookie["cookie"].partition("=")
        digest, until, signature = value.split(".")
        changed = {
            "key": f"{'0' * 64}.{until}.{signature}",
            "expiry": f"{digest}.{int(until) + 9}.{signature}",
            "signature": f"{digest}.{until}.{signature[:-1]}~",
            "nothing in it": "x",
        }
        assert client.get("/v1/videos", headers={"cookie": f"{name}={changed[change]}"}).status_code == 401

    def test_an_old_one_is_refused(
        self, client: TestClient, cookie: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = time.time
        monkeypatch.setattr(sessions.time, "time", lambda: now() + sessions.LIFETIME_S + 1)
        assert "expired" in error_of(client.get("/v1/videos", headers=cookie), 401)["message"]

    def test_signing_in_needs_a_key_and_signing_out_removes_the_cookie(
        self, client: TestClient, cookie: dict[str, str]
    ) -> None:
        assert client.post("/v1/session", headers=cookie | SAME).status_code == 401
        assert client.post("/v1/session", headers={"authorization": "Bearer wrong"}).status_code == 401
        gone = client.delete("/v1/session", headers=cookie | SAME)
        assert SimpleCookie(gone.headers["set-cookie"])[sessions.COOKIE]["max-age"] == "0"

    def test_a_key_in_a_header_comes_first(
        self, client: TestClient, cookie: dict[str, str], services: Services
    ) -> None:
        other = {"authorization": f"Bearer {services.keys.create('other')[1]}"}
        assert answer_of(client.get("/v1/session", headers=cookie | other))["name"] == "other"


class TestScopeReadAll:
    @pytest.fixture
    def dashboard(self, services: Services) -> dict[str, str]:
        return {"authorization": f"Bearer {services.keys.create('wall', scopes=[Scope.READ_ALL])[1]}"}

    def test_it_sees_the_videos_of_all_keys(
        self, client: TestClient, video: dict[str, Any], dashboard: dict[str, str]
    ) -> None:
        path = f"/v1/videos/{video['id']}"
        assert answer_of(client.get("/v1/videos", headers=dashboard))["data"][0]["id"] == video["id"]
        assert client.get(path, headers=dashboard).status_code == 200
        assert client.get(f"{path}/content", headers=dashboard).content == VIDEO
        assert client.get("/v1/queue", headers=dashboard).status_code == 200
        assert answer_of(client.get("/v1/videos?" + urlencode({"after": video["id"]}), headers=dashboard))["data"] == []

    @pytest.mark.parametrize("scopes", [[Scope.READ_ALL], [Scope.READ_ALL, Scope.WRITE]])
    def test_it_changes_none_of_them(
        self, client: TestClient, video: dict[str, Any], services: Services, scopes: list[Scope]
    ) -> None:
        headers = {"authorization": f"Bearer {services.keys.create('wall', scopes=scopes)[1]}"}
        path = f"/v1/videos/{video['id']}"
        for answer in (client.delete(path, headers=headers), client.post(f"{path}/cancel", headers=headers)):
            error_of(answer, 403)
        assert client.get(path, headers=headers).status_code == 200
