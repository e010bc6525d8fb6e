"""POST /v1/videos: the new video, the encodings of its request, and what is refused."""

from __future__ import annotations

import json

import openai
import pytest
from fastapi.testclient import TestClient

from service.jobs.rq_queues import generate_queue
from service.settings import Settings
from service.wiring import Services
from tests.api_calls import answer_of, create, error_of
from tests.factories import PROMPT


def test_a_new_video_is_queued_and_every_key_is_there(client: TestClient, services: Services) -> None:
    video = create(client, seed=5, metadata={"a": "b"}, user="u")
    expected = {
        "object": "video",
        "model": "demo",
        "status": "queued",
        "progress": 0,
        "prompt": PROMPT,
        "size": "384x384",
        "seconds": "1",
        "error": None,
        "completed_at": None,
        "expires_at": None,
        "remixed_from_video_id": None,
        "seed": 5,
        "fps": 8,
        "num_frames": 8,
        "num_inference_steps": 16,
        "negative_prompt": "low quality",
        "queue_position": 0,
        "attempt": 0,
        "metadata": {"a": "b"},
        "user": "u",
        "stage_durations": {},
    }
    assert {name: video[name] for name in expected} == expected
    assert set(openai.types.Video.model_fields) <= set(video)
    assert isinstance(video["created_at"], int)
    assert generate_queue(services.redis, "demo").job_ids == [video["id"]]


def test_three_encodings_say_the_same(client: TestClient) -> None:
    given = {"prompt": PROMPT, "seed": "5", "fps": "4", "seconds": "2", "sampler[rho]": "3", "metadata[a]": "b"}
    nested = {"prompt": PROMPT, "seed": 5, "fps": 4, "seconds": 2, "sampler": {"rho": 3}, "metadata": {"a": "b"}}
    answers = [
        client.post("/v1/videos", json=nested),
        client.post("/v1/videos", data=given),
        client.post("/v1/videos", files={name: (None, value) for name, value in given.items()}),
    ]
    own = ("id", "created_at", "queue_position")
    shown = [{name: value for name, value in answer.json().items() if name not in own} for answer in answers]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert shown[0] == shown[1] == shown[2]
    assert (shown[0]["seed"], shown[0]["fps"], shown[0]["sampler"]["rho"]) == (5, 4, 3)


def test_ddim_with_the_image_network_is_taken_in_every_encoding_and_shown(
    client: TestClient, services: Services
) -> None:
    image = {"name": "ddim", "network": "image"}
    form = {"prompt": PROMPT, "sampler[name]": "ddim", "sampler[network]": "image"}
    answers = [
        client.post("/v1/videos", json={"prompt": PROMPT, "sampler": image}),
        client.post("/v1/videos", data=form),
    ]
    for answer in answers:
        video = answer.json()
        assert (answer.status_code, video["sampler"]["network"]) == (200, "image"), video
        assert video["network_calls"] == {"image": 16, "video": 0}
        assert video["guidance_scale"] == services.models.get("demo").image_guidance_scale
        assert client.get(f"/v1/videos/{video['id']}").json()["sampler"] == video["sampler"]
        job = services.store.get(video["id"])
        assert job is not None
        assert job.generation.sampler.network == "image"
    assert "network" not in create(client, sampler=image | {"network": "video"})["sampler"]


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ({"network": "image"}, "Sampler 'iv-mixed' has no network; leave it out, or use ddim."),
        ({"name": "zigzag", "network": "image"}, "Sampler 'zigzag' has no network; leave it out, or use ddim."),
        ({"name": "ddim", "network": "audio"}, "'image' or 'video'"),
        ({"name": "ddim", "network": ["image"]}, "'image' or 'video'"),
        ({"name": "ddim", "networks": "image"}, "network"),
    ],
    ids=str,
)
def test_network_where_it_cannot_be_used_is_refused(
    client: TestClient, sampler: dict[str, object], message: str
) -> None:
    error = error_of(client.post("/v1/videos", json={"prompt": PROMPT, "sampler": sampler}), 400)
    assert error["param"] in ("sampler.network", "sampler.networks")
    assert message in error["message"]


def test_evs_is_taken_and_costs_the_pixels_of_its_image_steps(client: TestClient) -> None:
    made = create(client, sampler={"name": "evs"})
    own = {name: made["sampler"][name] for name in ("enlarge", "image_step_guidance")}
    assert own == {"enlarge": 1, "image_step_guidance": 1.5}, "the model's"
    assert made["network_calls"] == {"image": 8, "video": 8}
    assert create(client, sampler=made["sampler"])["sampler"] == made["sampler"]
    costs = [
        answer_of(client.post("/v1/videos/estimate", json={"prompt": PROMPT, "sampler": sampler}))["cost"]
        for sampler in ({"name": "evs"}, {"name": "evs", "enlarge": 2})
    ]
    assert costs[1] == costs[0] / 16 * (8 * 4 + 8)


@pytest.mark.parametrize(
    ("sampler", "param", "message"),
    [
        (
            {"name": "zigzag", "guidance_rule": "apg"},
            "guidance_rule",
            "'zigzag' has no guidance_rule; leave it out, or",
        ),
        ({"name": "evs", "guidance_rule": "apg"}, "guidance_rule", "use iv-mixed, ddim."),
        ({"name": "ddim", "apg_eta": 0.5}, "apg_eta", "guidance_rule 'cfg' has no apg_eta; leave it out, or use"),
        ({"guidance_rule": "apg", "zero_init_steps": 2}, "zero_init_steps", "or use guidance_rule 'cfg-zero'."),
        ({"guidance_rule": "cfg-zero", "zero_init_steps": 16}, "zero_init_steps", "less than num_inference_steps, 16."),
        ({"enlarge": 2}, "enlarge", "Sampler 'iv-mixed' has no enlarge; leave it out, or use evs."),
    ],
    ids=str,
)
def test_a_rival_where_it_cannot_run_is_refused(
    client: TestClient, sampler: dict[str, object], param: str, message: str
) -> None:
    error = error_of(client.post("/v1/videos", json={"prompt": PROMPT, "sampler": sampler}), 400)
    assert (error["param"], message in error["message"]) == (f"sampler.{param}", True), error


def test_released_code_is_taken_and_shown_with_its_settings(client: TestClient, services: Services) -> None:
    made = create(client, sampler="official")
    shown = {name: made["sampler"][name] for name in ("name", "active_steps", "zz", "image_guidance")}
    assert shown == {"name": "official", "active_steps": [0, 49], "zz": 1000, "image_guidance": [4, 4]}
    assert (made["negative_prompt"], made["network_calls"]) == ("", {"image": 30, "video": 45})
    assert create(client, sampler=made["sampler"])["sampler"] == made["sampler"]
    job = services.store.get(made["id"])
    assert job is not None
    assert job.generation.official_family == "animatediff"
    form = {"prompt": PROMPT, "sampler[name]": "official", "sampler[active_steps][]": ["2", "3"]}
    answer = client.post("/v1/videos", data=form).json()
    assert answer["sampler"]["active_steps"] == [2, 3]


@pytest.mark.parametrize(
    ("sampler", "param", "message"),
    [
        ({"name": "official", "interval": [0, 0.5]}, "interval", "its active_steps are the first and the last step"),
        ({"name": "official", "combination": "II-VV"}, "combination", "has no combination; leave it out, or use iv"),
        ({"name": "official", "active_steps": [0, -1]}, "active_steps.1", "at least 0"),
        ({"name": "official", "active_steps": [0.5, 2]}, "active_steps.0", "a whole number"),
        ({"name": "official", "zz": 0}, "zz", "at least 1"),
        ({"zz": 3}, "zz", "Sampler 'iv-mixed' has no zz; leave it out, or use official."),
        ({"name": "ddim", "active_steps": [0, 3]}, "active_steps", "leave it out, or use official."),
    ],
    ids=str,
)
def test_what_the_released_code_cannot_do_is_refused(
    client: TestClient, sampler: dict[str, object], param: str, message: str
) -> None:
    error = error_of(client.post("/v1/videos", json={"prompt": PROMPT, "sampler": sampler}), 400)
    assert error["param"] == f"sampler.{param}"
    assert message in error["message"]


def test_json_needs_no_exact_content_type(client: TestClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert client.post("/v1/videos", content=json.dumps({"prompt": PROMPT}), headers=headers).status_code == 200


def test_the_position_counts_those_ahead(client: TestClient) -> None:
    assert [create(client)["queue_position"] for _ in range(3)] == [0, 1, 2]


def test_a_prompt_with_unknown_words_is_refused_with_what_the_model_can_draw(client: TestClient) -> None:
    error = error_of(client.post("/v1/videos", json={"prompt": "a dragon over Paris"}), 400)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "prompt", "invalid_value")
    assert "'dragon'" in error["message"]
    assert "circle, square or triangle" in error["message"]


def test_an_unknown_model_is_refused_with_the_known_ones(client: TestClient) -> None:
    error = error_of(client.post("/v1/videos", json={"prompt": PROMPT, "model": "sora-2"}), 400)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "demo" in error["message"]


def test_an_unknown_field_is_refused_by_name(client: TestClient) -> None:
    error = error_of(client.post("/v1/videos", json={"prompt": PROMPT, "stepps": 3}), 400)
    assert (error["param"], error["code"]) == ("stepps", "unknown_parameter")


def test_a_file_is_refused_by_name(client: TestClient) -> None:
    files = {"image": ("a.png", b"png"), "prompt": (None, PROMPT)}
    error = error_of(client.post("/v1/videos", files=files), 400)
    assert (error["param"], error["code"]) == ("image", "unsupported_parameter")


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'"text"', "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 60_000, "application/json", 400),
        (b'{"prompt": "\\ud800"}', "application/json", 400),
        (b'{"\\ud800": 1}', "application/json", 400),
        (b'{"prompt": "a", "metadata": {"\\ud800": "\\ud800"}}', "application/json", 400),
        (b"prompt=%ff&user=%ed%a0%80", "application/x-www-form-urlencoded", 400),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json", 400),
        (b"--x", "multipart/form-data", 400),
        (b"no parts", "multipart/form-data; boundary=x", 400),
        (b"prompt=a", "text/plain", 415),
        (b"", "", 415),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(client: TestClient, content: bytes, kind: str, status: int) -> None:
    answer = client.post("/v1/videos", content=content, headers={"content-type": kind})
    assert error_of(answer, status)["type"] == "invalid_request_error"


@pytest.mark.parametrize("declared", [True, False], ids=["with its length", "in pieces"])
def test_a_large_body_is_refused(client: TestClient, settings: Settings, declared: bool) -> None:
    body = b'{"prompt": "' + b"a" * settings.max_body_bytes + b'"}'
    pieces = (body[i : i + 1000] for i in range(0, len(body), 1000))
    answer = client.post(
        "/v1/videos", content=body if declared else pieces, headers={"content-type": "application/json"}
    )
    assert error_of(answer, 413)["code"] == "body_too_large"
