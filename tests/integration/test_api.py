"""The HTTP API on a real Valkey. `client` runs it in this process; `server` is reached over HTTP."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient
from redis.exceptions import ConnectionError as RedisConnectionError

from service.api.app import create_app
from service.errors import ConfigurationError
from service.jobs.model import JobError
from service.jobs.rq_queues import generate_queue
from service.process.embedded_valkey import EmbeddedValkey, free_port
from service.redis_connection.client import open_redis
from service.settings import Settings
from service.wiring import Services, open_services
from tests.conftest import serve
from tests.factories import PROMPT, finish

# OpenAI has shut down its video API; its SDK still supports the format.
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")

Finish = Callable[[str, bytes], None]


def create(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/videos", json={"prompt": PROMPT} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def error_of(answer: httpx2.Response, status: int) -> dict[str, Any]:
    """The error of a response; all have the same four keys and a request id."""
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@contextmanager
def services_for(settings: Settings) -> Iterator[Services]:
    opened = open_services(settings)
    yield opened
    opened.close()


class TestCreate:
    def test_a_new_video_is_queued_and_every_key_is_there(self, client: TestClient, services: Services) -> None:
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

    def test_three_encodings_say_the_same(self, client: TestClient) -> None:
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

    def test_json_needs_no_exact_content_type(self, client: TestClient) -> None:
        headers = {"content-type": "Application/JSON; charset=utf-8"}
        assert client.post("/v1/videos", content=json.dumps({"prompt": PROMPT}), headers=headers).status_code == 200

    def test_the_position_counts_those_ahead(self, client: TestClient) -> None:
        assert [create(client)["queue_position"] for _ in range(3)] == [0, 1, 2]

    def test_a_prompt_with_unknown_words_is_refused_with_what_the_model_can_draw(self, client: TestClient) -> None:
        error = error_of(client.post("/v1/videos", json={"prompt": "a dragon over Paris"}), 400)
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "prompt", "invalid_value")
        assert "'dragon'" in error["message"]
        assert "circle, square or triangle" in error["message"]

    def test_an_unknown_model_is_refused_with_the_known_ones(self, client: TestClient) -> None:
        error = error_of(client.post("/v1/videos", json={"prompt": PROMPT, "model": "sora-2"}), 400)
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert "demo" in error["message"]

    def test_an_unknown_field_is_refused_by_name(self, client: TestClient) -> None:
        error = error_of(client.post("/v1/videos", json={"prompt": PROMPT, "stepps": 3}), 400)
        assert (error["param"], error["code"]) == ("stepps", "unknown_parameter")

    def test_a_file_is_refused_by_name(self, client: TestClient) -> None:
        files = {"input_reference": ("a.png", b"png"), "prompt": (None, PROMPT)}
        error = error_of(client.post("/v1/videos", files=files), 400)
        assert (error["param"], error["code"]) == ("input_reference", "unsupported_parameter")

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
    def test_a_body_that_cannot_be_read_is_refused(
        self, client: TestClient, content: bytes, kind: str, status: int
    ) -> None:
        answer = client.post("/v1/videos", content=content, headers={"content-type": kind})
        assert error_of(answer, status)["type"] == "invalid_request_error"

    @pytest.mark.parametrize("declared", [True, False], ids=["with its length", "in pieces"])
    def test_a_large_body_is_refused(self, client: TestClient, settings: Settings, declared: bool) -> None:
        body = b'{"prompt": "' + b"a" * settings.max_body_bytes + b'"}'
        pieces = (body[i : i + 1000] for i in range(0, len(body), 1000))
        answer = client.post(
            "/v1/videos", content=body if declared else pieces, headers={"content-type": "application/json"}
        )
        assert error_of(answer, 413)["code"] == "body_too_large"


class TestRetrieveAndList:
    def test_status_follows_the_worker(self, client: TestClient, services: Services, finished: Finish) -> None:
        made = create(client)
        services.store.start(made["id"], "execution")
        services.store.report_progress(made["id"], "execution", 5, 20, "sampling")
        running = client.get(f"/v1/videos/{made['id']}").json()
        assert (running["status"], running["progress"], running["phase"]) == ("in_progress", 25, "sampling")
        assert running["queue_position"] is None
        finished(made["id"], b"mp4")
        done = client.get(f"/v1/videos/{made['id']}").json()
        assert (done["status"], done["progress"], done["phase"]) == ("completed", 100, None)
        assert (done["inference_time_s"], done["peak_memory_mb"], done["media_type"]) == (2.0, 512, "video/mp4")
        assert done["stage_durations"]["denoise_gen_ms"] == 1500
        assert done["expires_at"] - done["completed_at"] == services.settings.retention_seconds

    def test_a_failed_video_is_200(self, client: TestClient, services: Services) -> None:
        made = create(client)
        services.store.fail(made["id"], None, JobError(code="out_of_memory", message="Too large."))
        answer = client.get(f"/v1/videos/{made['id']}")
        assert answer.status_code == 200
        assert answer.json()["error"] == {"code": "out_of_memory", "message": "Too large."}

    def test_the_response_has_the_poll_interval(self, client: TestClient) -> None:
        made = create(client)
        assert client.get(f"/v1/videos/{made['id']}").headers["openai-poll-after-ms"] == "1000"

    def test_an_unknown_video_is_404(self, client: TestClient) -> None:
        for path in ("/v1/videos/video_x", "/v1/videos/video_x/content"):
            assert error_of(client.get(path), 404)["code"] == "video_not_found"
        assert error_of(client.delete("/v1/videos/video_x"), 404)["code"] == "video_not_found"

    def test_a_list_is_paged_newest_first(self, client: TestClient) -> None:
        ids = [create(client)["id"] for _ in range(3)]
        page = client.get("/v1/videos", params={"limit": 2}).json()
        assert [video["id"] for video in page["data"]] == [ids[2], ids[1]]
        assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == ("list", ids[2], ids[1], True)
        rest = client.get("/v1/videos", params={"limit": 2, "after": page["last_id"]}).json()
        assert ([video["id"] for video in rest["data"]], rest["has_more"]) == ([ids[0]], False)

    def test_a_list_can_be_filtered_and_is_paged_all_the_same(self, client: TestClient, services: Services) -> None:
        wanted = []
        for i in range(6):
            made = create(client, metadata={"project": "ab"[i % 2], "take": "1"})
            wanted += [made["id"]] if i % 2 else []
        services.store.cancel(wanted[0])

        def listed(**query: Any) -> tuple[list[str], bool, str | None]:
            page = client.get("/v1/videos", params=query).json()
            return [video["id"] for video in page["data"]], page["has_more"], page["last_id"]

        of_b = {"metadata[project]": "b", "order": "asc"}
        assert listed(**of_b) == (wanted, False, wanted[2])
        assert listed(**of_b, limit=2) == (wanted[:2], True, wanted[1])
        assert listed(**of_b, limit=2, after=wanted[1]) == (wanted[2:], False, wanted[2])
        assert listed(**of_b, status="queued")[0] == wanted[1:]
        assert listed(**of_b, status="failed")[0] == wanted[:1]
        assert listed(**of_b, **{"metadata[take]": "2"}) == ([], False, None)
        assert error_of(client.get("/v1/videos?status=cancelled"), 400)["param"] == "status"

    def test_a_rare_match_is_found_over_several_pages(
        self, client: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.jobs.reader.MAX_SCANNED", 2)
        monkeypatch.setattr("service.jobs.reader.SCAN_BATCH", 2)
        rare = create(client, metadata={"a": "b"})["id"]
        for _ in range(4):
            create(client)
        pages = 0
        page: dict[str, Any] = {"data": [], "last_id": None}
        while not page["data"]:
            after = {"after": page["last_id"]} if page["last_id"] else {}
            page = client.get("/v1/videos", params={"metadata[a]": "b"} | after).json()
            pages += 1
        assert ([video["id"] for video in page["data"]], pages) == ([rare], 3)

    def test_an_empty_list_has_no_ends(self, client: TestClient) -> None:
        empty = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
        assert client.get("/v1/videos").json() == empty

    @pytest.mark.parametrize(
        ("query", "param"), [("limit=101", "limit"), ("limit=-1", "limit"), ("limit=x", "limit"), ("order=up", "order")]
    )
    def test_a_wrong_page_is_refused_by_name(self, client: TestClient, query: str, param: str) -> None:
        error = error_of(client.get(f"/v1/videos?{query}"), 400)
        assert (error["param"], error["code"]) == (param, "invalid_value")


class TestDelete:
    def test_a_finished_video_is_deleted_with_its_files(
        self, client: TestClient, settings: Settings, finished: Finish
    ) -> None:
        made = create(client)
        finished(made["id"], b"mp4")
        answer = client.delete(f"/v1/videos/{made['id']}")
        assert answer.json() == {"id": made["id"], "object": "video.deleted", "deleted": True}
        assert client.get(f"/v1/videos/{made['id']}").status_code == 404
        assert [path for path in settings.data_dir.rglob("*") if path.is_file()] == []

    def test_a_video_that_has_not_ended_is_not_deleted(self, client: TestClient, services: Services) -> None:
        made = create(client)
        for _ in ("queued", "running"):
            error = error_of(client.delete(f"/v1/videos/{made['id']}"), 400)
            assert error["code"] == "video_not_deletable"
            assert "cancel it first" in error["message"]
            services.store.start(made["id"], "execution")
        assert client.get(f"/v1/videos/{made['id']}").json()["status"] == "in_progress"


class TestContent:
    VIDEO = bytes(range(256)) * 10

    @pytest.fixture
    def path(self, client: TestClient, finished: Finish) -> str:
        made = create(client)
        finished(made["id"], self.VIDEO)
        return f"/v1/videos/{made['id']}/content"

    def test_the_whole_file(self, client: TestClient, path: str) -> None:
        answer = client.get(path, headers={"accept": "application/binary"})
        assert (answer.status_code, answer.content) == (200, self.VIDEO)
        assert answer.headers["content-type"] == "video/mp4"
        assert answer.headers["content-length"] == str(len(self.VIDEO))
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
    def test_a_range_of_the_file(self, client: TestClient, path: str, asked: str, expected: slice) -> None:
        answer = client.get(path, headers={"range": asked})
        assert (answer.status_code, answer.content) == (206, self.VIDEO[expected])
        assert answer.headers["content-range"] == f"bytes {expected.start}-{expected.stop - 1}/2560"
        assert answer.headers["content-length"] == str(expected.stop - expected.start)

    @pytest.mark.parametrize("asked", ["bytes=2560-", "bytes=5-4", "bytes=-0"])
    def test_a_range_outside_the_file_is_416(self, client: TestClient, path: str, asked: str) -> None:
        answer = client.get(path, headers={"range": asked})
        assert error_of(answer, 416)["code"] == "range_not_satisfiable"
        assert answer.headers["content-range"] == "bytes */2560"

    @pytest.mark.parametrize(
        "asked", ["bytes=-", "bytes=a-b", "pages=1-2", "bytes=0-1,5-6", "bytes=" + "9" * 5000 + "-"]
    )
    def test_an_unsupported_range_gets_the_whole_file(self, client: TestClient, path: str, asked: str) -> None:
        assert client.get(path, headers={"range": asked}).content == self.VIDEO

    def test_a_current_copy_is_not_sent_again(self, client: TestClient, path: str) -> None:
        etag = client.get(path).headers["etag"]
        answer = client.get(path, headers={"if-none-match": f'"other", {etag}'})
        assert (answer.status_code, answer.content) == (304, b"")
        assert client.get(path, headers={"if-none-match": '"other"'}).status_code == 200

    def test_if_range_with_another_etag_gets_the_whole_file(self, client: TestClient, path: str) -> None:
        etag = client.get(path).headers["etag"]
        assert client.get(path, headers={"range": "bytes=0-0", "if-range": etag}).status_code == 206
        assert client.get(path, headers={"range": "bytes=0-0", "if-range": '"old"'}).content == self.VIDEO

    def test_head_is_get_without_the_body(self, client: TestClient, path: str) -> None:
        head, get = client.head(path), client.get(path)
        assert head.content == b""
        same = ("content-length", "content-type", "etag", "accept-ranges")
        assert [head.headers[name] for name in same] == [get.headers[name] for name in same]

    def test_the_thumbnail_is_a_separate_file(self, client: TestClient, path: str) -> None:
        answer = client.get(path, params={"variant": "thumbnail"})
        assert answer.content == b"thumbnail of " + self.VIDEO
        assert answer.headers["content-type"] == "image/webp"
        assert answer.headers["etag"] != client.get(path).headers["etag"]

    def test_a_variant_that_was_not_made_is_404(self, client: TestClient, path: str) -> None:
        assert "spritesheet" in error_of(client.get(path, params={"variant": "spritesheet"}), 404)["message"]

    def test_an_unknown_variant_is_refused_by_name(self, client: TestClient, path: str) -> None:
        assert error_of(client.get(path, params={"variant": "gif"}), 400)["param"] == "variant"

    def test_a_video_that_has_not_ended_is_not_ready(self, client: TestClient) -> None:
        path = f"/v1/videos/{create(client)['id']}/content"
        assert error_of(client.get(path), 404)["code"] == "video_not_ready"

    def test_a_failed_video_has_no_content(self, client: TestClient, services: Services) -> None:
        made = create(client)
        services.store.cancel(made["id"])
        assert error_of(client.get(f"/v1/videos/{made['id']}/content"), 404)["code"] == "video_failed"

    def test_a_file_that_was_removed_has_expired(self, client: TestClient, path: str, settings: Settings) -> None:
        for file in settings.data_dir.rglob("*.mp4"):
            file.unlink()
        assert error_of(client.get(path), 404)["code"] == "video_expired"

    def test_on_s3_the_client_is_sent_to_the_bucket(self, s3: Settings, tmp_path: Path) -> None:
        with services_for(s3) as services, serve(services) as url:
            api = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
            made = create_with_sdk(api)
            finish(services, made.id, self.VIDEO, scratch=tmp_path)
            answer = TestClient(create_app(services)).get(f"/v1/videos/{made.id}/content", follow_redirects=False)
            assert answer.status_code == 307
            assert answer.headers["location"].startswith(s3.s3_endpoint_url or "")
            assert download_with_sdk(api, made.id) == self.VIDEO


class TestModels:
    def test_models_list_their_limits(self, client: TestClient) -> None:
        listed = client.get("/v1/models").json()
        assert listed["object"] == "list"
        [model] = listed["data"]
        assert client.get("/v1/models/demo").json() == model
        assert (model["id"], model["object"], model["sizes"]) == ("demo", "model", ["384x384"])
        assert model["num_inference_steps"] == {"default": 16, "min": 1, "max": 200}
        assert "circle" in model["can_draw"]
        assert model["samplers"] == ["iv-mixed", "ddim", "zigzag", "freeinit", "fused"]
        assert {"I-I", "IV-IV", "II-VV", "RR-II"} < set(model["combinations"])
        assert model["max_cost"] == 1.2e9
        assert "path" not in model

    def test_an_unknown_model_is_404(self, client: TestClient) -> None:
        assert error_of(client.get("/v1/models/sora-2"), 404)["code"] == "model_not_found"


class TestEveryResponse:
    @pytest.mark.parametrize("path", ["/", "/v1", "/v1/nothing", "/v1/videos/a/b/c", "/videos"])
    def test_an_unknown_path_is_404_with_the_error_body(self, client: TestClient, path: str) -> None:
        assert error_of(client.get(path), 404)["code"] == "unsupported_endpoint"

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("POST", "/v1/videos/edits"),
            ("POST", "/v1/videos/extensions"),
            ("POST", "/v1/videos/characters"),
            ("GET", "/v1/videos/characters/char_1"),
        ],
    )
    def test_unsupported_openai_endpoints_are_404_with_a_code(self, client: TestClient, method: str, path: str) -> None:
        error = error_of(client.request(method, path), 404)
        assert error["code"] == "unsupported_endpoint"
        assert path in error["message"]

    @pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/videos"), ("PATCH", "/v1/videos/x"), ("POST", "/livez")])
    def test_a_wrong_method_is_405_with_the_error_body(self, client: TestClient, method: str, path: str) -> None:
        answer = client.request(method, path)
        assert error_of(answer, 405)["code"] == "method_not_allowed"
        assert answer.headers["allow"]

    def test_a_bug_is_500_with_the_error_body_and_logged(
        self, client: TestClient, services: Services, caplog: pytest.LogCaptureFixture
    ) -> None:
        made = create(client)
        services.redis.hset(f"ivm:job:{made['id']}", "state", '"dancing"')
        with caplog.at_level(logging.ERROR, "ivmix.api"):
            answer = client.get(f"/v1/videos/{made['id']}", headers={"x-request-id": "my-1"})
        error = error_of(answer, 500)
        assert (error["type"], error["code"]) == ("server_error", "internal_error")
        assert "dancing" not in answer.text + caplog.text
        assert answer.headers["x-request-id"] == "my-1"
        assert "my-1" in caplog.text
        assert "ValidationError" in caplog.text

    def test_the_clients_request_id_is_echoed(self, client: TestClient) -> None:
        assert client.get("/livez", headers={"x-request-id": "my-1"}).headers["x-request-id"] == "my-1"

    @pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a\tb"])
    def test_an_invalid_request_id_is_replaced(self, client: TestClient, given: str) -> None:
        made = client.get("/livez", headers={"x-request-id": given}).headers["x-request-id"]
        assert re.fullmatch(r"req_[0-9a-f]{32}", made)

    def test_the_openapi_description_is_served(self, client: TestClient) -> None:
        assert "VideoRequest" in client.get("/openapi.json").json()["components"]["schemas"]


class TestWithoutRedis:
    @pytest.fixture
    def lonely(self, settings: Settings) -> Iterator[TestClient]:
        with socket.socket() as held:  # bound but not listening: connections are refused
            held.bind(("127.0.0.1", 0))
            url = f"redis://127.0.0.1:{held.getsockname()[1]}"
            with services_for(settings.model_copy(update={"redis_url": url})) as services:
                yield TestClient(create_app(services), raise_server_exceptions=False)

    def test_every_endpoint_that_needs_redis_is_503_with_retry_after(self, lonely: TestClient) -> None:
        for answer in (
            lonely.post("/v1/videos", json={"prompt": PROMPT}),
            lonely.get("/v1/videos"),
            lonely.get("/v1/videos/video_x"),
            lonely.get("/v1/videos/video_x/content"),
            lonely.delete("/v1/videos/video_x"),
        ):
            error = error_of(answer, 503)
            assert (error["type"], error["code"]) == ("server_error", "service_unavailable")
            assert int(answer.headers["retry-after"]) > 0

    def test_it_is_alive_but_not_ready(self, lonely: TestClient) -> None:
        assert lonely.get("/livez").status_code == 200
        answer = lonely.get("/readyz")
        assert error_of(answer, 503)["code"] == "service_unavailable"
        assert answer.headers["retry-after"]

    def test_a_server_that_hangs_is_not_ready_without_a_long_wait(self, settings: Settings) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
            with services_for(settings.model_copy(update={"redis_url": url})) as services:
                answer = TestClient(create_app(services)).get("/readyz")
        assert answer.status_code == 503
        assert answer.elapsed.total_seconds() < 4  # the probe's short timeout, not the 5 s of other commands

    def test_a_server_that_cannot_write_is_not_ready_and_takes_no_job(
        self, client: TestClient, services: Services
    ) -> None:
        made = create(client)
        services.redis.config_set("maxmemory", 1)
        try:
            assert error_of(client.get("/readyz"), 503)
            assert error_of(client.post("/v1/videos", json={"prompt": PROMPT}), 503)["code"] == "service_unavailable"
            assert client.get(f"/v1/videos/{made['id']}").status_code == 200
        finally:
            services.redis.config_set("maxmemory", 0)
        assert client.get("/readyz").json() == {"status": "ok"}

    def test_an_accepted_video_is_there_after_redis_was_killed(self, tmp_path: Path) -> None:
        with (
            EmbeddedValkey(tmp_path) as url,
            services_for(Settings(redis_url=url, data_dir=tmp_path, auth="off")) as services,
        ):
            made = create(TestClient(create_app(services)))
        with (
            EmbeddedValkey(tmp_path) as url,
            services_for(Settings(redis_url=url, data_dir=tmp_path, auth="off")) as services,
        ):
            shown = TestClient(create_app(services)).get(f"/v1/videos/{made['id']}").json()
            assert (shown["status"], shown["queue_position"]) == ("queued", 0)


def test_a_server_open_to_others_without_authentication_does_not_start(services: Services) -> None:
    open_to_all = replace(services, settings=services.settings.model_copy(update={"host": "0.0.0.0"}))
    with pytest.raises(ConfigurationError, match="IVMIX_ALLOW_OPEN"):
        create_app(open_to_all)


@pytest.mark.parametrize("url", ["localhost:6379", "redis://localhost:many"])
def test_an_invalid_redis_url_is_refused_by_name(settings: Settings, url: str) -> None:
    with pytest.raises(ConfigurationError, match="IVMIX_REDIS_URL"):
        open_services(settings.model_copy(update={"redis_url": url}))


def test_redis_can_be_a_socket(tmp_path: Path) -> None:
    with open_redis(f"unix://{tmp_path}/s") as redis, pytest.raises(RedisConnectionError, match="/s"):
        redis.ping()


def test_without_redis_in_the_settings_nothing_starts(settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match="IVMIX_REDIS_URL"):
        open_services(settings.model_copy(update={"redis_url": None}))


class TestWithTheOpenAiSdk:
    @pytest.fixture
    def api(self, server: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)

    def test_from_prompt_to_video(self, api: openai.OpenAI, finished: Finish) -> None:
        made = api.videos.create(prompt=PROMPT, model="demo", seconds="1", size="384x384")  # type: ignore[arg-type]
        assert (made.status, made.progress, made.seconds, made.size) == ("queued", 0, "1", "384x384")
        finished(made.id, b"mp4")
        done = api.videos.poll(made.id)
        assert (done.status, done.progress) == ("completed", 100)
        assert download_with_sdk(api, made.id) == b"mp4"
        assert api.videos.download_content(made.id, variant="thumbnail").read() == b"thumbnail of mp4"
        assert api.videos.delete(made.id).deleted is True
        with pytest.raises(openai.NotFoundError) as raised:
            api.videos.retrieve(made.id)
        assert raised.value.code == "video_not_found"
        assert raised.value.request_id

    def test_extensions_travel_in_extra_body(self, api: openai.OpenAI) -> None:
        extras = {"seed": 5, "sampler": {"name": "zigzag", "interval": [0.2, 0.8]}, "metadata": {"a": "b"}, "n": 1}
        made = create_with_sdk(api, extra_body=extras)
        assert made.model_extra is not None
        assert (made.model_extra["seed"], made.model_extra["metadata"]) == (5, {"a": "b"})
        assert made.model_extra["sampler"]["name"] == "zigzag"
        assert made.model_extra["sampler"]["interval"] == [0.2, 0.8]

    def test_all_pages_are_walked(self, api: openai.OpenAI) -> None:
        ids = [create_with_sdk(api).id for _ in range(5)]
        assert [video.id for video in api.videos.list(limit=2, order="asc")] == ids

    def test_an_error_arrives_with_all_its_fields(self, api: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as raised:
            api.videos.create(prompt=PROMPT, size="720x1280")
        error = raised.value
        assert (error.code, error.param, error.type) == ("invalid_value", "size", "invalid_request_error")
        assert "384x384" in error.message

    def test_models_are_listed(self, api: openai.OpenAI) -> None:
        assert [model.id for model in api.models.list()] == ["demo"]
        assert api.models.retrieve("demo").owned_by == "ivmix"


def create_with_sdk(api: openai.OpenAI, **more: Any) -> openai.types.Video:
    return api.videos.create(prompt=PROMPT, **more)


def download_with_sdk(api: openai.OpenAI, video_id: str) -> bytes:
    return api.videos.download_content(video_id).read()


def test_the_module_serves_until_sigterm(settings: Settings) -> None:
    """`python -m service.api` as an operator starts it."""
    port = free_port()
    environment = os.environ | {
        "IVMIX_REDIS_URL": str(settings.redis_url),
        "IVMIX_DATA_DIR": str(settings.data_dir),
        "IVMIX_PORT": str(port),
    }
    with subprocess.Popen([sys.executable, "-m", "service.api"], env=environment) as process:
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    assert httpx2.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).json() == {"status": "ok"}
                    break
                except httpx2.ConnectError:
                    assert time.monotonic() < deadline
                    assert process.poll() is None
                    time.sleep(0.1)
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, -signal.SIGTERM)


def test_the_module_prints_one_line_about_a_missing_setting() -> None:
    ran = subprocess.run([sys.executable, "-m", "service.api"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.strip().splitlines()[-1].startswith("ivmix: IVMIX_REDIS_URL is not set")
    assert "Traceback" not in ran.stderr
