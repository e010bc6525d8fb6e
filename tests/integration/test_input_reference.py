"""`input_reference` from the request to the storage, and its end with the video."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient
from redis.exceptions import ConnectionError as RedisConnectionError

from service.jobs.model import JobError, JobState
from service.jobs.store import JobStore
from service.maintenance.retention import Retention
from service.settings import Settings
from service.storage import object_keys, read
from service.storage.reference_files import NOTED, SWEPT_AFTER_S, ReferenceFiles
from service.wiring import Services, open_services
from tests.api_process import api_process
from tests.conftest import serve
from tests.factories import PROMPT, finish
from tests.reference_files import clip, picture

PICTURE = picture()
DATA_URL = "data:image/png;base64," + base64.b64encode(PICTURE).decode()


def send(client: Any, data: bytes = PICTURE, path: str = "/v1/videos", **fields: Any) -> Any:
    headers = {"idempotency-key": fields.pop("key")} if "key" in fields else {}
    form = {"prompt": PROMPT} | {name: str(value) for name, value in fields.items()}
    return client.post(path, data=form, files={"input_reference": ("any.name", data, "any/type")}, headers=headers)


def made(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return answer.json()


def error_of(answer: Any, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def stored(services: Services) -> list[str]:
    return [found.key for found in services.storage.list("references/")]


def left_over(services: Services) -> list[Path]:
    folder = services.settings.upload_folder
    return list(folder.iterdir()) if folder.exists() else []


@pytest.fixture(params=["settings", "s3"], ids=["file", "s3"])
def either(request: pytest.FixtureRequest) -> Iterator[Services]:
    opened = open_services(request.getfixturevalue(request.param))
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
        again = client.videos.create(prompt=PROMPT, input_reference={"image_url": DATA_URL})
    assert video.model_extra is not None
    assert again.model_extra is not None
    assert video.model_extra["input_reference"] == again.model_extra["input_reference"]


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
        ({"strength": 1.5}, "strength", "less than or equal to 1"),
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


def test_a_repeated_request_stores_nothing(client: TestClient, services: Services) -> None:
    first = made(send(client, key="once"))
    assert made(send(client, key="once"))["id"] == first["id"]
    assert stored(services) == [object_keys.reference(first["id"])]
    for changed in ({"data": picture(size=(32, 32))}, {"strength": 0.5}, {"reference_use": "start"}):
        assert error_of(send(client, key="once", **changed), 422)["code"] == "idempotency_key_reused"
    assert (len(stored(services)), left_over(services), services.redis.zcard(NOTED)) == (1, [], 0)


def test_a_request_that_loses_the_race_for_its_key_stores_nothing(
    client: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(send(client, key="once"))
    monkeypatch.setattr(JobStore, "find_by_idempotency_key", lambda *_: None)
    assert made(send(client, key="once"))["id"] == first["id"]
    assert stored(services) == [object_keys.reference(first["id"])]


def test_a_full_queue_leaves_nothing(settings: Settings) -> None:
    full = open_services(settings.model_copy(update={"max_waiting": 1}))
    with serve(full) as url, httpx2.Client(base_url=url) as http:
        made(send(http))
        assert error_of(send(http), 429)["code"] == "queue_full"
    assert (len(stored(full)), left_over(full), full.redis.zcard(NOTED)) == (1, [], 0)
    full.close()


def test_after_a_lost_answer_of_redis_maintenance_decides(
    client: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = JobStore.create

    def lose(store: JobStore, *arguments: Any, **options: Any) -> Any:
        create(store, *arguments, **options)
        raise RedisConnectionError

    monkeypatch.setattr(JobStore, "create", lose)
    assert send(client).status_code == 503
    monkeypatch.setattr(JobStore, "create", lambda *_, **__: (_ for _ in ()).throw(RedisConnectionError()))
    assert send(client).status_code == 503
    kept, lost = sorted(stored(services))
    later = ReferenceFiles(services.redis, services.storage, now=lambda: time.time() + SWEPT_AFTER_S + 1)
    assert (services.references.sweep(), len(stored(services))) == (0, 2), "too early"
    assert (later.sweep(), stored(services)) == (1, [kept])
    assert services.store.exists(kept.removeprefix("references/"))
    assert not services.store.exists(lost.removeprefix("references/"))
    assert (later.sweep(), services.redis.zcard(NOTED)) == (0, 0)


@pytest.mark.parametrize("end", ["failed", "cancelled", "completed"])
def test_it_stays_until_the_record_goes(
    client: TestClient, services: Services, finished: Callable[[str, bytes], None], end: str
) -> None:
    job_id = made(send(client))["id"]
    key = object_keys.reference(job_id)
    if end == "failed":
        assert services.store.fail(job_id, None, JobError(code="timeout", message="Too slow."))
    elif end == "cancelled":
        services.store.cancel(job_id)
    else:
        finished(job_id, b"an MP4")
    clock = [time.time()]
    retention = Retention(
        services.redis, services.store, services.storage, retention_s=900, tidy_after_s=90, now=lambda: clock[0]
    )
    retention.take_over(job_id)
    clock[0] += 100
    retention.run_once()
    assert stored(services) == [key], "run_again needs it"
    again = made(client.post(f"/v1/videos/{job_id}/run_again"))
    assert read(services.storage, object_keys.reference(again["id"])) == read(services.storage, key)
    clock[0] += 8 * 86400
    retention.run_once()
    assert key not in stored(services)
    assert stored(services) == [object_keys.reference(again["id"])]


def test_remix_and_run_again_keep_the_reference(client: TestClient, services: Services) -> None:
    source = made(send(client, strength=0.5))
    path = f"/v1/videos/{source['id']}"
    remixed = made(client.post(f"{path}/remix", json={"prompt": PROMPT.replace("red", "blue")}))
    changed = made(client.post(f"{path}/run_again", json={"strength": 0.25, "seed": -1}))
    assert remixed["input_reference"] == source["input_reference"]
    assert changed["input_reference"] == source["input_reference"] | {"strength": 0.25}
    other = made(send(client, picture(size=(32, 32)), path=f"{path}/remix"))
    assert (other["input_reference"]["width"], other["input_reference"]["strength"]) == (32, 0.8)
    assert "use iv-mixed" in error_of(client.post(f"{path}/run_again", json={"sampler": "official"}))["message"]
    services.storage.delete(object_keys.reference(source["id"]))
    error = error_of(client.post(f"{path}/run_again"))
    assert (error["param"], "no longer stored; send the picture" in error["message"]) == ("input_reference", True)
    assert (len(stored(services)), left_over(services)) == (3, [])


def test_sync_keeps_no_temporary_file_while_it_waits(services: Services, tmp_path: Path) -> None:
    seen: list[list[Path]] = []
    watched = open_services(services.settings)
    view = JobStore.view

    def looking(store: JobStore, job_id: str) -> Any:
        seen.append(left_over(services))
        finish(services, job_id, b"an MP4", scratch=tmp_path) if len(seen) == 1 else None
        return view(store, job_id)

    watched.store.view = looking.__get__(watched.store)  # type: ignore[method-assign]
    with serve(watched) as url:
        answer = send(httpx2.Client(base_url=url, timeout=30), path="/v1/videos/sync")
    assert (answer.status_code, answer.content) == (200, b"an MP4")
    assert seen[0] == []
    watched.close()


def test_a_client_that_leaves_leaves_no_file(settings: Settings, tmp_path: Path) -> None:
    head = (
        b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 900000\r\n\r\n--x\r\n"
        b'Content-Disposition: form-data; name="input_reference"; filename="a.png"\r\n\r\n'
    )
    services = open_services(settings)
    with api_process(settings, tmp_path) as api:
        connection = api.connect(head, os.urandom(200_000))
        wait_until(lambda: sum(path.stat().st_size for folder in left_over(services) for path in folder.iterdir()) > 0)
        connection.close()
        wait_until(lambda: left_over(services) == [])
    services.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_30_megabytes_are_refused_at_the_limit_without_memory(settings: Settings, tmp_path: Path) -> None:
    """Sent without a length, so that the server sees the limit only when it is passed."""
    services, most, sent = open_services(settings), 0, 0
    data = bytes(2**16)

    def body() -> Iterator[bytes]:
        nonlocal most, sent
        yield b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' + PROMPT.encode()
        yield b'\r\n--x\r\nContent-Disposition: form-data; name="input_reference"; filename="a.png"\r\n\r\n'
        yield PICTURE
        for _ in range(30 * 2**20 // len(data)):
            yield data
            sent += len(data)
            most = max(most, resident_bytes(pid))
        yield b"\r\n--x--\r\n"

    with api_process(settings, tmp_path) as api, httpx2.Client(base_url=api.url, timeout=30) as http:
        pid = process_on(api.port)
        assert send(http).status_code == 200  # what is imported once
        before = resident_bytes(pid)
        headers = {"content-type": "multipart/form-data; boundary=x"}
        error = error_of(http.post("/v1/videos", content=body(), headers=headers), 413)
        known = error_of(send(http, bytes(30 * 2**20)), 413)
    assert error == known
    assert (error["param"], error["code"]) == ("input_reference", "body_too_large")
    assert str(20 * 2**20) in error["message"]
    assert sent >= 19 * 2**20
    assert most - before < 6 * 2**20, f"{(most - before) / 2**20:.1f} MiB"
    assert left_over(services) == []
    services.close()


def process_on(port: int) -> int:
    """The id of the process that listens on the port."""
    inode = next(
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
    )
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(os.readlink(entry) == f"socket:[{inode}]" for entry in folder.iterdir()):
                return int(folder.parent.name)
        except OSError:
            continue
    raise AssertionError("nobody listens")


def test_a_data_url_has_a_limit_of_its_own(settings: Settings) -> None:
    small = open_services(settings.model_copy(update={"max_body_bytes": 2000, "max_data_url_bytes": 5000}))
    with serve(small) as url, httpx2.Client(base_url=url) as http:
        for send_as in ("json", "data", "files"):

            def body(text: str, kind: str = send_as) -> dict[str, Any]:
                fields = {"prompt": PROMPT, "input_reference": text}
                return {kind: {name: (None, value) for name, value in fields.items()} if kind == "files" else fields}

            noise = base64.b64encode(os.urandom(2000)).decode()
            assert "unknown kind" in error_of(http.post("/v1/videos", **body("data:a/b;base64," + noise)))["message"]
            error = error_of(http.post("/v1/videos", **body("data:a/b;base64," + 3 * noise)), 413)
            assert "larger than 5000 bytes" in error["message"]
        error = error_of(http.post("/v1/videos", json={"prompt": PROMPT, "user": "x" * 3000}), 413)
        assert "larger than 2000 bytes" in error["message"]
    small.close()


def test_a_full_disk_refuses_a_file_before_it_is_read(settings: Settings) -> None:
    full = open_services(settings.model_copy(update={"min_free_mb": 10**9}))
    with serve(full) as url, httpx2.Client(base_url=url) as http:
        assert error_of(send(http), 503)["code"] == "no_space"
    assert (stored(full), left_over(full)) == ([], [])
    full.close()


def test_only_so_many_uploads_at_a_time(services: Services) -> None:
    from service.api.uploads import MOST_UPLOADS_PER_CLIENT, Uploads
    from service.errors import RateLimited

    uploads = Uploads(services.settings)
    opened = [uploads.folder("one") for _ in range(MOST_UPLOADS_PER_CLIENT)]
    folders = [folder.__enter__() for folder in opened]
    with pytest.raises(RateLimited), uploads.folder("one"):
        pass
    old = folders[0].with_name(folders[0].name + "-old")
    old.mkdir()
    os.utime(old, (0, 0))
    with uploads.folder("two"):
        assert not old.exists(), "left behind by a process that ended"
    for folder in opened:
        folder.__exit__(None, None, None)
    with uploads.folder("one"):
        assert len(left_over(services)) == 1


def test_unfinished_videos_of_the_example(services: Services, client: TestClient) -> None:
    """A queued video that is deleted takes its reference with it."""
    job_id = made(send(client))["id"]
    assert services.store.get(job_id).state is JobState.QUEUED  # type: ignore[union-attr]
    assert made(client.delete(f"/v1/videos/{job_id}"))["deleted"]
    assert stored(services) == []
