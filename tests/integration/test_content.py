"""The files of a video over HTTP: ranges, conditional requests, variants, and what has none."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from service.settings import Settings
from service.wiring import Services
from tests.api_calls import create, error_of

Finish = Callable[[str, bytes], None]

VIDEO = bytes(range(256)) * 10


@pytest.fixture
def path(client: TestClient, finished: Finish) -> str:
    made = create(client)
    finished(made["id"], VIDEO)
    return f"/v1/videos/{made['id']}/content"


def test_the_whole_file(client: TestClient, path: str) -> None:
    answer = client.get(path, headers={"accept": "application/binary"})
    assert (answer.status_code, answer.content) == (200, VIDEO)
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["content-length"] == str(len(VIDEO))
    assert answer.headers["accept-ranges"] == "bytes"
    assert re.fullmatch(r'inline; filename="video_\w+\.mp4"', answer.headers["content-disposition"])


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=10-19", slice(10, 20)),
        ("bytes=2550-", slice(2550, 2560)),
        ("bytes=-5", slice(2555, 2560)),
        ("bytes=-9999", slice(0, 2560)),
        ("bytes=2559-9999", slice(2559, 2560)),
    ],
)
def test_a_range_of_the_file(client: TestClient, path: str, asked: str, expected: slice) -> None:
    answer = client.get(path, headers={"range": asked})
    assert (answer.status_code, answer.content) == (206, VIDEO[expected])
    assert answer.headers["content-range"] == f"bytes {expected.start}-{expected.stop - 1}/2560"
    assert answer.headers["content-length"] == str(expected.stop - expected.start)


@pytest.mark.parametrize("asked", ["bytes=2560-", "bytes=5-4", "bytes=-0"])
def test_a_range_outside_the_file_is_416(client: TestClient, path: str, asked: str) -> None:
    answer = client.get(path, headers={"range": asked})
    assert error_of(answer, 416)["code"] == "range_not_satisfiable"
    assert answer.headers["content-range"] == "bytes */2560"


@pytest.mark.parametrize("asked", ["bytes=-", "bytes=a-b", "pages=1-2", "bytes=0-1,5-6", "bytes=" + "9" * 5000 + "-"])
def test_an_unsupported_range_gets_the_whole_file(client: TestClient, path: str, asked: str) -> None:
    assert client.get(path, headers={"range": asked}).content == VIDEO


def test_a_current_copy_is_not_sent_again(client: TestClient, path: str) -> None:
    etag = client.get(path).headers["etag"]
    answer = client.get(path, headers={"if-none-match": f'"other", {etag}'})
    assert (answer.status_code, answer.content) == (304, b"")
    assert client.get(path, headers={"if-none-match": '"other"'}).status_code == 200


def test_if_range_with_another_etag_gets_the_whole_file(client: TestClient, path: str) -> None:
    etag = client.get(path).headers["etag"]
    assert client.get(path, headers={"range": "bytes=0-0", "if-range": etag}).status_code == 206
    assert client.get(path, headers={"range": "bytes=0-0", "if-range": '"old"'}).content == VIDEO


def test_head_is_get_without_the_body(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert head.content == b""
    same = ("content-length", "content-type", "etag", "accept-ranges")
    assert [head.headers[name] for name in same] == [get.headers[name] for name in same]


def test_the_thumbnail_is_a_separate_file(client: TestClient, path: str) -> None:
    answer = client.get(path, params={"variant": "thumbnail"})
    assert answer.content == b"thumbnail of " + VIDEO
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["etag"] != client.get(path).headers["etag"]


def test_a_variant_that_was_not_made_is_404(client: TestClient, path: str) -> None:
    assert "spritesheet" in error_of(client.get(path, params={"variant": "spritesheet"}), 404)["message"]


def test_an_unknown_variant_is_refused_by_name(client: TestClient, path: str) -> None:
    assert error_of(client.get(path, params={"variant": "gif"}), 400)["param"] == "variant"


def test_a_video_that_has_not_ended_is_not_ready(client: TestClient) -> None:
    path = f"/v1/videos/{create(client)['id']}/content"
    assert error_of(client.get(path), 404)["code"] == "video_not_ready"


def test_a_failed_video_has_no_content(client: TestClient, services: Services) -> None:
    made = create(client)
    services.store.cancel(made["id"])
    assert error_of(client.get(f"/v1/videos/{made['id']}/content"), 404)["code"] == "video_failed"


def test_a_file_that_was_removed_has_expired(client: TestClient, path: str, settings: Settings) -> None:
    for file in settings.data_dir.rglob("*.mp4"):
        file.unlink()
    assert error_of(client.get(path), 404)["code"] == "video_expired"
