"""`input_reference` from the request to the storage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient

from service.settings import Settings
from service.storage import object_keys, read
from service.storage.reference_files import NOTED
from service.wiring import Services, open_services
from tests.conftest import serve
from tests.factories import PROMPT
from tests.reference_calls import DATA_URL, PICTURE, error_of, left_over, made, send, stored
from tests.reference_files import clip, picture


@pytest.fixture(params=["settings", "s3"], ids=["file", "s3"])
def either(request: pytest.FixtureRequest) -> Iterator[Services]:
    settings: Settings = request.getfixturevalue(request.param)
    opened = open_services(settings.model_copy(update={"upload_dir": settings.data_dir / "elsewhere"}))
    yield opened
    opened.close()


def test_a_file_is_stored_with_its_video_and_deleted_with_it(either: Services) -> None:
    with serve(either) as url, httpx2.Client(base_url=url, timeout=30) as http:
        video = made(send(http, strength=0.5, num_inference_steps=16))
        assert video["input_reference"] == {
            "type": "image",
            "use": "start",
            "strength": 0.5,
            "conditioning_scale": None,
            "num_frames": 1,
            "width": 64,
            "height": 48,
        }
        whole = made(http.post("/v1/videos/estimate", json={"prompt": PROMPT, "num_inference_steps": 16}))
        assert (video["total_steps"], whole["total_steps"]) == (8, 16)
        assert sum(video["network_calls"].values()) < sum(whole["network_calls"].values())
        job = either.store.get(video["id"])
        assert job is not None
        assert job.generation.reference is not None
        key = object_keys.reference(job.id)
        content = read(either.storage, key)
        assert hashlib.sha256(content).hexdigest() == job.generation.reference.sha256
        assert stored(either) == [key]
        assert b"IDAT" in content
        for name in either.redis.keys("*"):  # type: ignore[union-attr]
            assert b"IDAT" not in (either.redis.dump(name) or b"")  # type: ignore[operator]
        assert made(http.delete(f"/v1/videos/{job.id}"))["deleted"]
    assert (stored(either), left_over(either), either.redis.zcard(NOTED)) == ([], [], 0)


def test_a_picture_can_be_sent_in_many_ways(client: TestClient, services: Services) -> None:
    by_json = [DATA_URL, {"image_url": DATA_URL}, {"image_url": DATA_URL, "video_id": None}]
    videos = [made(client.post("/v1/videos", json={"prompt": PROMPT, "input_reference": value})) for value in by_json]
    nested = {"prompt": PROMPT, "extra_body": {"input_reference": DATA_URL, "strength": 0.8}}
    videos += [made(client.post("/v1/videos", json=nested)), made(send(client))]
    for name, value in (
        ("input_reference", DATA_URL),
        ("input_reference[image_url]", DATA_URL),
        ("input_reference", json.dumps({"image_url": DATA_URL})),
    ):
        videos.append(made(client.post("/v1/videos", data={"prompt": PROMPT, name: value})))
        videos.append(made(client.post("/v1/videos", files={"prompt": (None, PROMPT), name: (None, value)})))
    jobs = [services.store.get(video["id"]) for video in videos]
    references = {job.generation.reference for job in jobs if job}
    assert len(references) == 1
    assert len(stored(services)) == len(videos)
    assert left_over(services) == []


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_the_openai_sdk_sends_a_file(server: str, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(PICTURE)
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client, path.open("rb") as file:
        video = client.videos.create(prompt=PROMPT, input_reference=file)
    assert video.model_extra is not None
    assert video.model_extra["input_reference"]["type"] == "image"


def test_a_clip_and_a_finished_video_can_be_the_start(
    client: TestClient, services: Services, finished: Callable[[str, bytes], None], tmp_path: Path
) -> None:
    source = made(send(client, clip(tmp_path, frames=8), num_frames=8))
    assert (source["input_reference"]["type"], source["input_reference"]["num_frames"]) == ("video", 8)
    error = error_of(send(client, clip(tmp_path, frames=7), num_frames=8))
    assert (error["param"], "7 of the clip" in error["message"]) == ("num_frames", True)
    body = {"prompt": PROMPT, "input_reference": source["id"], "num_frames": 8}
    assert "is not completed" in error_of(client.post("/v1/videos", json=body))["message"]
    finished(source["id"], b"an MP4")
    for value in (source["id"], {"video_id": source["id"]}, {"file_id": source["id"]}):
        video = made(client.post("/v1/videos", json=body | {"input_reference": value}))
        assert read(services.storage, object_keys.reference(video["id"])) == b"an MP4"
    services.storage.delete(f"videos/{source['id']}/execution/video.mp4")
    assert "no longer stored" in error_of(client.post("/v1/videos", json=body))["message"]
    assert left_over(services) == []


def test_videos_of_other_keys_do_not_exist(services: Services, finished: Callable[[str, bytes], None]) -> None:
    keyed = open_services(services.settings.model_copy(update={"auth": "keys"}))
    keys = [keyed.keys.create(name)[1] for name in ("one", "two")]
    with serve(keyed) as url, httpx2.Client(base_url=url) as http:
        source = made(send(http_with(http, keys[0])))
        finished(source["id"], b"an MP4")
        body = {"prompt": PROMPT, "input_reference": source["id"]}
        error = error_of(http_with(http, keys[1]).post("/v1/videos", json=body))
        assert "There is no video" in error["message"]
        assert made(http_with(http, keys[0]).post("/v1/videos", json=body))["input_reference"]["type"] == "video"
    keyed.close()


def http_with(http: httpx2.Client, key: str) -> httpx2.Client:
    http.headers["authorization"] = f"Bearer {key}"
    return http


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("https://example.com/cat.png", "does not fetch; send the file itself"),
        ({"image_url": "http://example.com/cat.png"}, "does not fetch"),
        ("/etc/passwd", "neither a data URL nor the id of a video"),
        ("file-abc", "neither a data URL nor the id"),
        ("video_" + "0" * 32, "There is no video"),
        ("data:image/png,abc", "not in Base64"),
        ("data:image/png;base64,a", "not valid Base64"),
        ("data:image/png;base64,%%%%", "not valid Base64"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64,aGVsbG8=", "unknown kind"),
        (5, "not a text"),
        ([DATA_URL], "not a text"),
        ({"image_url": [DATA_URL]}, "not a text"),
        ({"image_url": DATA_URL, "video_id": "video_" + "0" * 32}, "send one of them"),
        ({"sha256": "0" * 64, "media_type": "image/png", "width": 1, "height": 1}, "Unknown parameter"),
    ],
    ids=str,
)
def test_other_values_are_refused(client: TestClient, services: Services, value: Any, message: str) -> None:
    error = error_of(client.post("/v1/videos", json={"prompt": PROMPT, "input_reference": value}))
    assert error["param"].startswith("input_reference")
    assert message in error["message"]
    assert (stored(services), left_over(services)) == ([], [])


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"sampler": "official"}, "input_reference", "released code, which begins with noise; use iv-mixed or ddim"),
        ({"sampler": "freeinit"}, "input_reference", "makes new start noise"),
        ({"strength": 0}, "strength", "greater than 0"),
        ({"strength": 1.5}, "strength", "at most 1"),
        ({"strength": 0.05, "num_inference_steps": 16}, "strength", "strength=0.05 of 16 steps runs none; 0.0625 is"),
        ({"reference_use": "first_frame"}, "reference_use", "no SparseCtrl network"),
        ({"reference_use": "middle"}, "reference_use", "'start' or 'first_frame'"),
        ({"conditioning_scale": 0.5}, "conditioning_scale", "belongs to reference_use=first_frame"),
        ({"prompt": "a dragon"}, "prompt", "does not know"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused_by_name(
    client: TestClient, services: Services, fields: dict[str, Any], param: str, message: str
) -> None:
    for path in ("/v1/videos", "/v1/videos/estimate"):
        error = error_of(send(client, path=path, **fields))
        assert (error["param"], message in error["message"]) == (param, True), error
    assert (stored(services), left_over(services)) == ([], [])


@pytest.mark.parametrize("name", ["strength", "reference_use", "conditioning_scale"])
def test_settings_without_a_reference_are_refused(client: TestClient, name: str) -> None:
    value = "start" if name == "reference_use" else 0.5
    for nothing in ({}, {"input_reference": None}, {"input_reference": ""}, {"input_reference": {}}):
        error = error_of(client.post("/v1/videos", json={"prompt": PROMPT, name: value} | nothing))
        assert (error["param"], "without input_reference" in error["message"]) == (name, True)


def test_two_files_or_a_file_and_a_text_are_refused(client: TestClient) -> None:
    parts = [("prompt", (None, PROMPT)), *[("input_reference", ("a.png", PICTURE))] * 2]
    assert "more than once" in error_of(client.post("/v1/videos", files=parts))["message"]
    parts[2] = ("input_reference", (None, DATA_URL))
    assert "as a file and as a text" in error_of(client.post("/v1/videos", files=parts))["message"]


def test_the_bytes_of_a_file_may_look_like_a_boundary(client: TestClient, services: Services) -> None:
    """In parts of any size: what looks like the end of the file at the end of one part may go on in the next."""
    data = picture() + b"\r\n--x\r\r\n--xy--\r\n-" * 50  # after the end of a PNG anything may follow
    head = b'--xyz\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' + PROMPT.encode()
    head += b'\r\n--xyz\r\nContent-Disposition: form-data; name="input_reference"; filename="a.png"\r\n\r\n'
    body = head + data + b'\r\n--xyz\r\nContent-Disposition: form-data; name="seed"\r\n\r\n5\r\n--xyz--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=xyz"}
    seen = set()
    for size in (1, 7, 64, len(body)):
        parts = (body[i : i + size] for i in range(0, len(body), size))
        video = made(client.post("/v1/videos", content=parts, headers=headers))
        assert video["seed"] == 5
        job = services.store.get(video["id"])
        seen.add(job and job.generation.reference)
    assert len(seen) == 1
