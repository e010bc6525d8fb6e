"""callback_url, /v1/webhook_callback_secret and /v1/webhook_deliveries over HTTP; what other owners see."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.api.app import create_app
from service.api.auth import get_webhook_owner
from service.wiring import Services
from tests.api_calls import answer_of, create, error_of
from tests.factories import PROMPT, deliver_webhooks
from tests.webhook_calls import complete, register
from tests.webhook_receivers import Receiver, status


class TestCallbacks:
    @pytest.mark.parametrize("name", ["callback_url", "webhook_url"])
    @pytest.mark.parametrize("encoding", ["json", "data"])
    def test_a_request_can_have_a_callback_url(
        self, client: TestClient, services: Services, receiver: Receiver, name: str, encoding: str
    ) -> None:
        video = answer_of(client.post("/v1/videos", **{encoding: {"prompt": PROMPT, name: f"{receiver.url}/mine"}}))  # type: ignore[arg-type]
        complete(services, video["id"])
        complete(services, create(client)["id"])  # a video without a callback
        deliver_webhooks(services)
        secret = answer_of(client.get("/v1/webhook_callback_secret"))["signing_secret"]
        (got,) = receiver.received
        assert (got.path, got.event(secret).data.id) == ("/mine", video["id"])
        (shown,) = answer_of(client.get("/v1/webhook_deliveries"))["data"]
        assert (shown["url"], shown["webhook_endpoint_id"]) == (f"{receiver.url}/mine", None)

    @pytest.mark.parametrize(
        ("encoding", "events"),
        [
            ("json", ["video.failed"]),
            ("json", "video.failed"),
            ("data", '["video.failed"]'),
            ("data", "video.failed"),
        ],
    )
    def test_it_can_choose_its_event_types(
        self, client: TestClient, services: Services, receiver: Receiver, encoding: str, events: Any
    ) -> None:
        body = {"prompt": PROMPT, "callback_url": receiver.url, "callback_events": events}
        cancelled, silent = (answer_of(client.post("/v1/videos", **{encoding: body}))["id"] for _ in range(2))  # type: ignore[arg-type]
        services.store.cancel(cancelled)
        complete(services, silent)
        deliver_webhooks(services)
        assert [json.loads(got.body)["data"]["id"] for got in receiver.received] == [cancelled]

    @pytest.mark.parametrize(
        "change",
        [
            {"callback_url": "https://169.254.169.254/latest"},
            {"callback_url": "https://0.0.0.0/"},
            {"callback_url": "https://10.0.0.1/"},
            {"callback_url": "https://user@127.0.0.1/"},
            {"callback_url": "file:///etc/passwd"},
            {"webhook_url": "https://[::1]/"},
            {"callback_url": ""},
            {"callback_url": "https://127.0.0.1/", "callback_events": ["video.started"]},
            {"callback_url": "https://127.0.0.1/", "callback_events": []},
            {"callback_url": "https://127.0.0.1/a", "webhook_url": "https://127.0.0.1/b"},
            {"callback_events": ["video.failed"]},
        ],
    )
    def test_an_invalid_callback_is_refused_before_a_job_is_created(
        self, client: TestClient, services: Services, change: dict[str, Any]
    ) -> None:
        error = error_of(client.post("/v1/videos", json={"prompt": PROMPT} | change), 400)
        assert error["code"] == "invalid_value"
        assert services.store.list()[0] == []

    def test_the_callback_secret_can_be_rotated(self, client: TestClient) -> None:
        path = "/v1/webhook_callback_secret"
        old = answer_of(client.get(path))
        assert old == answer_of(client.get(path))
        new = answer_of(client.post(f"{path}/rotate_secret", json={"keep_old_secret_active_for_24_hours": True}))
        assert new["signing_secret"] != old["signing_secret"]
        assert answer_of(client.get(path)) == new


class TestDeliveries:
    def test_the_log_shows_every_attempt_and_no_response_body(self, client: TestClient, services: Services) -> None:
        with Receiver(status(500, x_secret="internal")) as receiver:
            endpoint = register(client, f"{receiver.url}/hook")
            video = answer_of(client.post("/v1/videos", json={"prompt": PROMPT}))["id"]
            complete(services, video)
            deliver_webhooks(services)
        (shown,) = answer_of(client.get(f"/v1/webhook_deliveries?video_id={video}"))["data"]
        assert (shown["object"], shown["status"], shown["video_id"]) == ("webhook_delivery", "pending", video)
        assert (shown["event_type"], shown["webhook_endpoint_id"]) == ("video.completed", endpoint["id"])
        assert (shown["attempt_count"], shown["error"], shown["completed_at"]) == (1, "bad_status", None)
        assert shown["next_attempt_at"] > shown["created_at"]
        (attempt,) = shown["attempts"]
        assert set(attempt) == {"at", "status_code", "error", "duration_s"}
        assert attempt["status_code"] == 500
        assert "internal" not in json.dumps(shown)
        assert answer_of(client.get(f"/v1/webhook_deliveries/{shown['id']}")) == shown
        assert answer_of(client.get("/v1/webhook_deliveries?video_id=video_other"))["data"] == []

    def test_the_list_is_paged_newest_first(self, client: TestClient, services: Services, receiver: Receiver) -> None:
        register(client, receiver.url)
        for _ in range(3):
            complete(services, answer_of(client.post("/v1/videos", json={"prompt": PROMPT}))["id"])
            deliver_webhooks(services)
        everything = answer_of(client.get("/v1/webhook_deliveries"))["data"]
        ids = [delivery["id"] for delivery in everything]
        assert ids == sorted(ids, reverse=True)
        first = answer_of(client.get("/v1/webhook_deliveries?limit=2"))
        assert ([d["id"] for d in first["data"]], first["last_id"], first["has_more"]) == (ids[:2], ids[1], True)
        rest = answer_of(client.get(f"/v1/webhook_deliveries?after={ids[1]}"))
        assert ([d["id"] for d in rest["data"]], rest["has_more"]) == (ids[2:], False)

    def test_redelivery_sends_the_same_webhook_again(
        self, client: TestClient, services: Services, receiver: Receiver
    ) -> None:
        register(client, receiver.url)
        complete(services, answer_of(client.post("/v1/videos", json={"prompt": PROMPT}))["id"])
        deliver_webhooks(services)
        (done,) = answer_of(client.get("/v1/webhook_deliveries"))["data"]
        assert done["status"] == "delivered"
        again = answer_of(client.post(f"/v1/webhook_deliveries/{done['id']}/redeliver"))
        assert (again["status"], again["completed_at"]) == ("pending", None)
        deliver_webhooks(services)
        assert [got.headers["webhook-id"] for got in receiver.received] == [done["id"]] * 2
        assert receiver.received[0].body == receiver.received[1].body
        assert answer_of(client.get(f"/v1/webhook_deliveries/{done['id']}"))["attempt_count"] == 2


def test_endpoints_and_deliveries_of_other_owners_are_404(services: Services, receiver: Receiver) -> None:
    app = create_app(services)
    with TestClient(app) as client:
        endpoint = register(client, receiver.url)
        secret = answer_of(client.get("/v1/webhook_callback_secret"))
        video = answer_of(client.post("/v1/videos", json={"prompt": PROMPT}))["id"]
        complete(services, video)
        deliver_webhooks(services)
        (delivery,) = answer_of(client.get("/v1/webhook_deliveries"))["data"]
        app.dependency_overrides[get_webhook_owner] = lambda: "other"
        assert answer_of(client.get("/v1/webhook_endpoints"))["data"] == []
        assert answer_of(client.get("/v1/webhook_deliveries"))["data"] == []
        assert answer_of(client.get(f"/v1/webhook_deliveries?video_id={video}"))["data"] == []
        assert answer_of(client.get("/v1/webhook_callback_secret")) != secret
        own = f"/v1/webhook_endpoints/{endpoint['id']}"
        for answer in (
            client.get(own),
            client.post(own, json={"name": "mine"}),
            client.delete(own),
            client.post(f"{own}/rotate_secret"),
            client.post(f"{own}/test", json={"event_type": "video.failed"}),
            client.get(f"/v1/webhook_deliveries/{delivery['id']}"),
            client.post(f"/v1/webhook_deliveries/{delivery['id']}/redeliver"),
        ):
            error_of(answer, 404)
    assert len(receiver.received) == 1
