"""POST /v1/videos/cancel and /v1/videos/{id}/run_again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.api.app import create_app
from service.api_keys import Scope
from service.settings import Settings
from service.wiring import Services
from tests.api_calls import answer_of, create, error_of

CANCEL = "/v1/videos/cancel"


def cancel(client: TestClient, **body: Any) -> dict[str, Any]:
    return answer_of(client.post(CANCEL, json=body))


def statuses(client: TestClient) -> dict[str, str]:
    return {video["id"]: video["status"] for video in answer_of(client.get("/v1/videos?limit=100"))["data"]}


def test_by_ids(client: TestClient, finished: Callable[[str, bytes], None]) -> None:
    first, second, done = (create(client)["id"] for _ in range(3))
    finished(done, b"abc")
    answer = cancel(client, ids=[first, done, "video_unknown", first])
    assert [(video["id"], video["status"]) for video in answer["data"]] == [
        (first, "failed"),
        (done, "completed"),
        ("video_unknown", "not_found"),
    ]
    assert (answer["has_more"], statuses(client)[second]) == (False, "queued")


def test_by_conditions(client: TestClient) -> None:
    kept = create(client)["id"]
    wanted = [create(client, metadata={"project": "a"})["id"] for _ in range(2)]
    answer = cancel(client, status="queued", metadata={"project": "a"})
    assert [video["id"] for video in answer["data"]] == wanted
    assert statuses(client)[kept] == "queued"
    assert cancel(client, metadata={"project": "a"})["data"] == []
    assert [video["id"] for video in cancel(client, model="demo")["data"]] == [kept]


def test_many_take_several_requests(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.api.routes import cancel_videos

    monkeypatch.setattr(cancel_videos, "MOST_TO_CANCEL", 2)
    for _ in range(3):
        create(client)
    first, second = cancel(client, status="queued"), cancel(client, status="queued")
    assert ([len(answer["data"]) for answer in (first, second)], first["has_more"]) == ([2, 1], True)
    assert second["has_more"] is False


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "either ids, or conditions"),
        ({"metadata": {}}, "either ids, or conditions"),
        ({"ids": ["video_x"], "status": "queued"}, "either ids, or conditions"),
        ({"ids": []}, "ids"),
        ({"ids": ["video_x"] * 101}, "ids"),
        ({"status": "completed"}, "status"),
        ({"statsu": "queued"}, "status"),
    ],
)
def test_what_is_not_clear_is_refused(client: TestClient, body: dict[str, Any], message: str) -> None:
    kept = create(client)["id"]
    assert message in error_of(client.post(CANCEL, json=body), 400)["message"]
    assert statuses(client)[kept] == "queued"


def test_only_the_callers_own(services: Services) -> None:
    settings = Settings.model_validate({**services.settings.model_dump(), "auth": "keys"})
    with TestClient(create_app(replace(services, settings=settings))) as client:
        one, two = ({"authorization": f"Bearer {services.keys.create(name)[1]}"} for name in "ab")
        made = answer_of(client.post("/v1/videos", json={"prompt": "a red circle"}, headers=one))["id"]
        by_id = answer_of(client.post(CANCEL, json={"ids": [made]}, headers=two))["data"]
        wall = {"authorization": f"Bearer {services.keys.create('c', scopes=[Scope.READ_ALL, Scope.WRITE])[1]}"}
        own = answer_of(client.post("/v1/videos", json={"prompt": "a red circle"}, headers=wall))["id"]
        both = answer_of(client.post(CANCEL, json={"ids": [made, own]}, headers=wall))["data"]
        assert [video["status"] for video in both] == ["not_found", "failed"]
        by_status = answer_of(client.post(CANCEL, json={"status": "queued"}, headers=two))["data"]
        assert ([video["status"] for video in by_id], by_status) == (["not_found"], [])
        assert answer_of(client.get(f"/v1/videos/{made}", headers=one))["status"] == "queued"


COPIED = ("prompt", "seed", "size", "num_frames", "fps", "num_inference_steps", "guidance_scale", "sampler", "model")


def test_run_again_copies_every_setting(client: TestClient) -> None:
    settings = {"seed": 5, "num_inference_steps": 9, "guidance_scale": 3, "sampler": {"name": "zigzag"}, "fps": 4}
    source = create(client, **settings, negative_prompt="")
    again = answer_of(client.post(f"/v1/videos/{source['id']}/run_again"))
    assert again["id"] != source["id"]
    assert again["remixed_from_video_id"] == source["id"]
    assert {name: again[name] for name in COPIED} == {name: source[name] for name in COPIED}
    other = answer_of(client.post(f"/v1/videos/{source['id']}/run_again", json={"seed": -1}))
    assert (other["seed"] != 5, other["num_inference_steps"]) == (True, 9)


def test_run_again_is_idempotent_and_needs_a_video(client: TestClient) -> None:
    source = create(client)["id"]
    key = {"idempotency-key": "again"}
    first, second = (answer_of(client.post(f"/v1/videos/{source}/run_again", headers=key)) for _ in range(2))
    assert first["id"] == second["id"]
    assert client.post("/v1/videos/video_x/run_again").status_code == 404
