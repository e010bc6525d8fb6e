"""POST /v1/videos/estimate says what creating would do, and does nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.api_keys import Scope
from service.settings import Settings
from service.wire.video import Video
from service.wiring import Services
from tests.api_calls import answer_of, create, error_of

PROMPT = "a red circle moving left on a teal background"
URL = "/v1/videos/estimate"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"seed": 3, "num_inference_steps": 25, "fps": 12},
        {"sampler": {"combination": "RR-II", "order": "goback_first", "interval": [0.2, 0.7], "image_every": 2}},
        {"sampler": {"name": "ddim", "network": "image"}},
        {"sampler": {"name": "zigzag"}, "seconds": 1},
        {"sampler": {"name": "freeinit", "iterations": 4}},
        {"sampler": {"name": "fused"}},
        {"sampler": {"name": "evs", "enlarge": 2}},
        {"sampler": {"name": "ddim", "guidance_rule": "cfg-zero"}},
        {"sampler": {"name": "official"}, "negative_prompt": "low quality"},
    ],
    ids=str,
)
def test_an_estimate_has_the_settings_and_calls_of_the_video(client: TestClient, body: dict[str, Any]) -> None:
    estimate = answer_of(client.post(URL, json={"prompt": PROMPT, **body}))
    video = create(client, prompt=PROMPT, **body)
    both = (estimate.keys() & Video.model_fields.keys()) - {"object", "seed", "inference_time_s"}
    assert len(both) >= 10
    assert {name: estimate[name] for name in both} == {name: video[name] for name in both}
    assert estimate["seed"] == body.get("seed")


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a dog"},
        {"model": "none"},
        {"sampler": {"interval": [1, 0]}},
        {"steps": 3},
        {"num_inference_steps": 0},
        {"callback_url": "https://169.254.169.254/"},
    ],
    ids=str,
)
def test_an_estimate_has_the_error_of_creating(client: TestClient, body: dict[str, Any]) -> None:
    body = {"prompt": PROMPT} | body
    assert error_of(client.post(URL, json=body), 400) == error_of(client.post("/v1/videos", json=body), 400)


def test_the_expected_time_grows_with_the_cost(client: TestClient, finished: Callable[[str, bytes], None]) -> None:
    def expected(steps: int) -> float | None:
        body = {"prompt": PROMPT, "num_inference_steps": steps, "sampler": {"name": "ddim"}}
        return answer_of(client.post(URL, json=body))["inference_time_s"]

    assert expected(10) is None
    finished(create(client, prompt=PROMPT, num_inference_steps=10, sampler={"name": "ddim"})["id"], b"video")
    # The fixture's video took 1.5 s of sampling and .5 s of the rest.
    assert [expected(10), expected(20), expected(100)] == [2.0, 3.5, 15.5]


class TestWithKeys:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"auth": "keys"})

    def test_it_creates_nothing_and_does_not_count_as_a_new_video(self, client: TestClient, services: Services) -> None:
        client.headers["x-api-key"] = services.keys.create("app", requests_per_minute=1)[1]
        for _ in range(3):
            answer_of(client.post(URL, json={"prompt": PROMPT}))
        assert answer_of(client.get("/v1/videos"))["data"] == []
        create(client)
        error_of(client.post("/v1/videos", json={"prompt": PROMPT}), 429)

    def test_it_needs_the_scope_of_creating(self, client: TestClient, services: Services) -> None:
        error_of(client.post(URL, json={"prompt": PROMPT}), 401)
        client.headers["x-api-key"] = services.keys.create("reader", scopes=[Scope.READ])[1]
        assert "videos.write" in error_of(client.post(URL, json={"prompt": PROMPT}), 403)["message"]


def test_a_list_of_queued_videos_has_their_places(client: TestClient) -> None:
    ids = [create(client)["id"] for _ in range(3)]
    places = {
        video["id"]: video["queue_position"] for video in answer_of(client.get("/v1/videos?status=queued"))["data"]
    }
    assert places == {video_id: place for place, video_id in enumerate(ids)}
    everything = answer_of(client.get("/v1/videos?status=queued,completed"))["data"]
    assert {video["queue_position"] for video in everything} == {None}
