"""Queries are strict: unknown, repeated, empty and malformed parameters are refused with a way out."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.factories import PROMPT


def refused(client: TestClient, url: str, *, method: str = "GET") -> dict[str, Any]:
    answer = client.request(method, url)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


LISTS = ("/v1/videos", "/v1/webhook_endpoints", "/v1/webhook_deliveries")


@pytest.mark.parametrize(
    ("url", "param", "hint"),
    [
        ("/v1/videos?lmit=5", "lmit", "Did you mean 'limit'?"),
        ("/v1/videos?Limit=5", "Limit", "Did you mean 'limit'?"),
        ("/v1/videos?statuss=completed", "statuss", "Did you mean 'status'?"),
        ("/v1/videos?limit[]=5", "limit[]", "Did you mean 'limit'?"),
        ("/v1/videos?metadata=x", "metadata", "Did you mean 'metadata[...]'?"),
        ("/v1/videos?zzzzzz=1", "zzzzzz", "Supported are:"),
        ("/v1/videos?%00=1", "\x00", "Supported are:"),
        ("/v1/webhook_endpoints?order=asc", "order", "Supported are: "),
        ("/v1/webhook_deliveries?videoid=x", "videoid", "Did you mean 'video_id'?"),
        ("/v1/models?limit=5", "limit", "This endpoint has none."),
        ("/v1/queue?x", "x", "This endpoint has none."),
        ("/v1/videos/video_0?expand=1", "expand", "This endpoint has none."),
        ("/v1/videos/video_0/events?x=1", "x", "This endpoint has none."),
        ("/v1/events?last_event_id=1-1", "last_event_id", "This endpoint has none."),
        ("/v1/videos/video_0/content?varient=video", "varient", "Did you mean 'variant'?"),
        ("/v1/webhook_callback_secret?x=1", "x", "This endpoint has none."),
    ],
)
def test_an_unknown_parameter_is_refused_with_the_nearest(client: TestClient, url: str, param: str, hint: str) -> None:
    error = refused(client, url)
    assert (error["code"], error["param"]) == ("unknown_parameter", param)
    assert hint in error["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/videos"), ("POST", "/v1/videos/video_0/cancel"), ("DELETE", "/v1/videos/video_0")],
)
def test_also_where_no_parameter_exists(client: TestClient, method: str, path: str) -> None:
    assert refused(client, f"{path}?prompt=x", method=method)["code"] == "unknown_parameter"


def test_head_is_as_strict_as_get(client: TestClient) -> None:
    assert client.head("/v1/videos?modle=x").status_code == 400


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=1&limit=2", "limit"),
        ("limit=1&limit=1", "limit"),
        ("order=asc&limit=1&order=desc", "order"),
        ("metadata[a]=1&metadata[a]=2", "metadata[a]"),
    ],
)
def test_a_repeated_parameter_is_refused(client: TestClient, query: str, param: str) -> None:
    error = refused(client, f"/v1/videos?{query}")
    assert error["param"] == param
    assert "more than once" in error["message"]


def test_different_metadata_filters_are_not_repeated(client: TestClient) -> None:
    made = client.post("/v1/videos", json={"prompt": PROMPT, "metadata": {"a": "1", "b": "2"}}).json()
    listed = client.get("/v1/videos?metadata[a]=1&metadata[b]=2").json()["data"]
    assert [video["id"] for video in listed] == [made["id"]]


@pytest.mark.parametrize("path", LISTS)
def test_an_empty_value_says_what_is_possible(client: TestClient, path: str) -> None:
    for query in ("limit=", "limit", "after=&limit=3"):
        error = refused(client, f"{path}?{query}")
        assert f"'{error['param']}' is empty" in error["message"]
        assert "leave it out" in error["message"]
    assert "a number from" in refused(client, f"{path}?limit=")["message"]


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=many", "'many' is not possible, it must be a whole number."),
        ("limit=1.5", "'1.5' is not possible, it must be a whole number."),
        ("limit=101", "must be at most 100."),
        ("limit=-1", "must be at least"),
    ],
)
def test_a_wrong_value_is_explained(client: TestClient, path: str, query: str, message: str) -> None:
    error = refused(client, f"{path}?{query}")
    assert (error["param"], error["code"]) == ("limit", "invalid_value")
    assert message in error["message"]


def test_a_value_of_a_fixed_set_names_the_set(client: TestClient) -> None:
    assert "one of 'asc' or 'desc'" in refused(client, "/v1/videos?order=up")["message"]
    message = refused(client, "/v1/videos/video_0/content?variant=gif")["message"]
    assert "'video', 'thumbnail', 'spritesheet' or 'preview'" in message


@pytest.mark.parametrize(("path", "kind"), [("/v1/webhook_endpoints", "we"), ("/v1/webhook_deliveries", "whd")])
class TestCursors:
    @pytest.mark.parametrize("after", ["nonsense", "0", "video_" + "0" * 32, "{kind}_", "{kind}_" + "g" * 32, "%00"])
    def test_nonsense_is_refused(self, client: TestClient, path: str, kind: str, after: str) -> None:
        error = refused(client, f"{path}?after={after.format(kind=kind)}")
        assert (error["param"], error["code"]) == ("after", "invalid_value")
        assert "last_id of the previous page" in error["message"]

    def test_the_id_of_a_deleted_entry_is_a_cursor(self, client: TestClient, path: str, kind: str) -> None:
        assert client.get(f"{path}?after={kind}_{'0' * 32}").json()["data"] == []
