"""`cache` of a request over HTTP and on the command line, and what the video and the model then say."""

from __future__ import annotations

import json

import pytest
from fastapi.testclient import TestClient

from service.cli.more_settings import note
from tests.api_calls import answer_of, create, error_of
from tests.factories import PROMPT

DEEP = {"name": "deep-cache", "steps": 1, "levels": 1}


def test_every_encoding_is_shown_by_the_video_as_approximate(client: TestClient) -> None:
    for cache in ("deep-cache", {"name": "deep-cache"}):
        video = create(client, cache=cache)
        assert (video["cache"], video["approximations"]) == (DEEP, ["deep-cache"])
    forms = ({"cache": "deep-cache"}, {"cache": json.dumps(DEEP)}, {"cache[name]": "deep-cache", "cache[steps]": "1"})
    for form in forms:
        video = answer_of(client.post("/v1/videos", data={"prompt": PROMPT, **form}))
        assert answer_of(client.get(f"/v1/videos/{video['id']}"))["cache"] == DEEP


def test_without_it_nothing_is_approximate(client: TestClient) -> None:
    video = create(client)
    assert (video["cache"], video["approximations"]) == (None, [])
    (model,) = answer_of(client.get("/v1/models"))["data"]
    assert (model["caches"], model["quantise"]) == (["deep-cache"], None)


def test_a_remix_is_exact_unless_it_asks_again(client: TestClient) -> None:
    source = create(client, cache="deep-cache")
    url = f"/v1/videos/{source['id']}/remix"
    assert answer_of(client.post(url, json={"prompt": PROMPT}))["approximations"] == []
    assert answer_of(client.post(url, json={"prompt": PROMPT, "cache": "deep-cache"}))["cache"] == DEEP


@pytest.mark.parametrize(
    ("cache", "param", "said"),
    [
        ("first-block", "cache.name", "'demo' has no cache 'first-block'; it has deep-cache."),
        ("teacache", "cache", "one of 'deep-cache', 'first-block', 'taylorseer'"),
        ({"name": "deep-cache", "steps": 0}, "cache.steps", "at least 1"),
        ({"name": "deep-cache", "threshold": 1}, "cache.threshold", "Unknown parameter: 'cache.threshold'"),
        ({"steps": 2}, "cache", "must be an object with 'name'"),
        ("{", "cache", "not valid JSON"),
        ({"name": "deep-cache", "levels": 3}, "cache.levels", "use 2 or less"),
    ],
    ids=str,
)
def test_an_error_names_the_setting_and_what_there_is(client: TestClient, cache: object, param: str, said: str) -> None:
    error = error_of(client.post("/v1/videos", json={"prompt": PROMPT, "cache": cache}), 400)
    assert error["param"] == param
    assert said in error["message"]


def test_command_lines_say_what_is_approximate() -> None:
    assert note([], is_experimental=False) == ""
    assert note(["deep-cache"], is_experimental=True) == ", approximate: deep-cache, experimental"
