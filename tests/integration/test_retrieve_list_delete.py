"""A video is retrieved, listed and deleted over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.jobs.model import JobError
from service.settings import Settings
from service.wiring import Services
from tests.api_calls import create, error_of

Finish = Callable[[str, bytes], None]


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
