"""/v1/webhook_endpoints over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai import InvalidWebhookSignatureError

from service.api.app import create_app
from service.settings import Settings
from service.webhooks.endpoints import MAX_ENDPOINTS
from service.wiring import open_services
from tests.api_calls import answer_of, error_of
from tests.webhook_calls import BOTH, register
from tests.webhook_receivers import Receiver, status


class TestEndpoints:
    def test_a_new_endpoint_shows_its_secret_once(self, client: TestClient, receiver: Receiver) -> None:
        made = register(client, receiver.url)
        secret = made.pop("signing_secret")
        assert secret.startswith("whsec_")
        assert made["object"] == "webhook_endpoint"
        assert (made["name"], made["url"], made["event_types"]) == ("orders", receiver.url, BOTH)
        assert (made["enabled"], made["disabled_at"]) == (True, None)
        assert made["created_at"] == made["updated_at"]
        assert made["signing_secret_hint"].endswith(secret[-4:])
        assert answer_of(client.get(f"/v1/webhook_endpoints/{made['id']}")) == made
        assert answer_of(client.get("/v1/webhook_endpoints"))["data"] == [made]

    def test_the_list_is_paged_newest_first(self, client: TestClient, receiver: Receiver) -> None:
        ids = [register(client, receiver.url, name=str(i))["id"] for i in range(5)][::-1]
        first = answer_of(client.get("/v1/webhook_endpoints?limit=2"))
        assert [e["id"] for e in first["data"]] == ids[:2]
        assert (first["object"], first["first_id"], first["last_id"], first["has_more"]) == ("list", *ids[:2], True)
        rest = answer_of(client.get(f"/v1/webhook_endpoints?limit=10&after={ids[1]}"))
        assert ([e["id"] for e in rest["data"]], rest["has_more"]) == (ids[2:], False)

    def test_an_empty_list_has_no_ids(self, client: TestClient) -> None:
        empty = answer_of(client.get("/v1/webhook_endpoints"))
        assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}

    def test_an_update_changes_only_the_given_fields(self, client: TestClient, receiver: Receiver) -> None:
        made = register(client, receiver.url)
        made.pop("signing_secret")
        path = f"/v1/webhook_endpoints/{made['id']}"
        changed = answer_of(client.post(path, json={"name": "other", "event_types": ["video.failed", "video.failed"]}))
        changed_at = changed.pop("updated_at")
        assert changed_at >= made.pop("updated_at")
        assert changed == made | {"name": "other", "event_types": ["video.failed"]}
        unchanged = answer_of(client.post(path))
        assert unchanged == changed | {"updated_at": changed_at}

    def test_a_deleted_endpoint_is_gone(self, client: TestClient, receiver: Receiver) -> None:
        made = register(client, receiver.url)
        path = f"/v1/webhook_endpoints/{made['id']}"
        gone = answer_of(client.request("DELETE", path, headers={"content-type": "application/json"}))
        assert gone == {"id": made["id"], "object": "webhook_endpoint.deleted", "deleted": True}
        assert error_of(client.get(path), 404)["code"] == "webhook_endpoint_not_found"
        assert error_of(client.delete(path), 404)["code"] == "webhook_endpoint_not_found"

    @pytest.mark.usefixtures("dispatcher")
    @pytest.mark.parametrize("answer", [204, 302, 410, 500])
    def test_a_test_returns_the_status_of_the_receiver(self, client: TestClient, answer: int) -> None:
        with Receiver(status(answer)) as receiver:
            made = register(client, receiver.url)
            path = f"/v1/webhook_endpoints/{made['id']}/test"
            for event_type in BOTH:
                result = answer_of(client.post(path, json={"event_type": event_type}))
                delivery = answer_of(client.get(f"/v1/webhook_deliveries/{result.pop('webhook_delivery_id')}"))
                assert delivery["attempts"][0]["status_code"] == answer
                assert (delivery["attempt_count"], delivery["next_attempt_at"]) == (1, None)
                assert result == {
                    "object": "webhook_endpoint.test",
                    "webhook_endpoint_id": made["id"],
                    "event_type": event_type,
                    "status_code": answer,
                    "success": True,
                }
            events = [got.event(made["signing_secret"]) for got in receiver.received]
        assert [event.type for event in events] == BOTH
        assert json.loads(receiver.received[1].body)["data"]["error"]["message"] == "This is a test."
        assert answer_of(client.get(f"/v1/webhook_endpoints/{made['id']}"))["enabled"] is True

    @pytest.mark.usefixtures("dispatcher")
    def test_a_test_without_a_response_is_an_error_with_the_reason(self, client: TestClient) -> None:
        with Receiver() as receiver:
            made = register(client, receiver.url)
        error = error_of(
            client.post(f"/v1/webhook_endpoints/{made['id']}/test", json={"event_type": "video.failed"}), 400
        )
        assert (error["code"], "no_connection" in error["message"]) == ("webhook_test_failed", True)

    @pytest.mark.usefixtures("dispatcher")
    @pytest.mark.parametrize("keep", [True, False])
    def test_a_rotated_secret_signs(self, client: TestClient, receiver: Receiver, keep: bool) -> None:
        made = register(client, receiver.url)
        path = f"/v1/webhook_endpoints/{made['id']}"
        body = {"keep_old_secret_active_for_24_hours": True} if keep else None
        fresh = answer_of(
            client.post(f"{path}/rotate_secret", json=body) if keep else client.post(f"{path}/rotate_secret")
        )
        assert fresh["signing_secret"] != made["signing_secret"]
        answer_of(client.post(f"{path}/test", json={"event_type": "video.completed"}))
        assert receiver.received[0].event(fresh["signing_secret"]).type == "video.completed"
        if keep:
            assert receiver.received[0].event(made["signing_secret"]).type == "video.completed"
        else:
            with pytest.raises(InvalidWebhookSignatureError):
                receiver.received[0].event(made["signing_secret"])

    def test_endpoints_per_owner_are_limited(self, client: TestClient, receiver: Receiver) -> None:
        for _ in range(MAX_ENDPOINTS):
            register(client, receiver.url)
        body = {"name": "one more", "url": receiver.url, "event_types": BOTH}
        assert error_of(client.post("/v1/webhook_endpoints", json=body), 400)["code"] == "too_many_endpoints"

    def test_event_types_are_listed(self, client: TestClient) -> None:
        assert answer_of(client.get("/v1/webhook_event_types")) == {"object": "list", "data": BOTH}


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "param", "code"),
        [
            ({"url": "https://169.254.169.254/"}, "url", "invalid_value"),
            ({"url": "https://10.0.0.1/"}, "url", "invalid_value"),
            ({"url": "https://a:b@127.0.0.1/"}, "url", "invalid_value"),
            ({"url": ""}, "url", "invalid_value"),
            ({"url": None}, "url", "invalid_value"),
            ({"url": "https://127.0.0.1/" + "a" * 3000}, "url", "string_above_max_length"),
            ({"event_types": []}, "event_types", "invalid_value"),
            ({"event_types": ["batch.completed"]}, "event_types.0", "invalid_value"),
            ({"event_types": "video.completed"}, "event_types", "invalid_value"),
            ({"name": ""}, "name", "invalid_value"),
            ({"secret": "mine"}, "secret", "unknown_parameter"),
        ],
    )
    def test_invalid_fields_are_refused_by_name(
        self, client: TestClient, change: dict[str, Any], param: str, code: str
    ) -> None:
        body = {"name": "orders", "url": "http://127.0.0.1:1/", "event_types": BOTH} | change
        error = error_of(client.post("/v1/webhook_endpoints", json=body), 400)
        assert (error["param"], error["code"]) == (param, code)

    @pytest.mark.parametrize("missing", ["name", "url", "event_types"])
    def test_a_missing_field_is_named(self, client: TestClient, missing: str) -> None:
        body = {"name": "orders", "url": "http://127.0.0.1:1/", "event_types": BOTH}
        del body[missing]
        error = error_of(client.post("/v1/webhook_endpoints", json=body), 400)
        assert (error["param"], error["code"]) == (missing, "missing_required_parameter")

    def test_a_changed_url_is_checked_too(self, client: TestClient, receiver: Receiver) -> None:
        made = register(client, receiver.url)
        path = f"/v1/webhook_endpoints/{made['id']}"
        assert error_of(client.post(path, json={"url": "https://[fe80::1]/"}), 400)["param"] == "url"
        assert answer_of(client.get(path))["url"] == receiver.url

    def test_malformed_bodies_are_refused(self, client: TestClient) -> None:
        path = "/v1/webhook_endpoints"
        as_json = {"content-type": "application/json"}
        assert error_of(client.post(path, content=b"{", headers=as_json), 400)["code"] == "invalid_body"
        assert error_of(client.post(path, content=b"[]", headers=as_json), 400)["code"] == "invalid_body"
        assert error_of(client.post(path, content=b"a=b"), 415)["code"] == "unsupported_media_type"
        huge = json.dumps({"name": "a" * 100_000}).encode()
        assert error_of(client.post(path, content=huge, headers=as_json), 413)["code"] == "body_too_large"

    @pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "after=" + "a" * 65])
    @pytest.mark.parametrize("path", ["webhook_endpoints", "webhook_deliveries"])
    def test_page_parameters_are_validated(self, client: TestClient, path: str, query: str) -> None:
        assert error_of(client.get(f"/v1/{path}?{query}"), 400)["param"] == query.partition("=")[0]

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "webhook_endpoints/we_1"),
            ("POST", "webhook_endpoints/we_1"),
            ("DELETE", "webhook_endpoints/we_1"),
            ("POST", "webhook_endpoints/we_1/rotate_secret"),
            ("POST", "webhook_endpoints/we_1/test"),
            ("GET", "webhook_deliveries/whd_1"),
            ("POST", "webhook_deliveries/whd_1/redeliver"),
        ],
    )
    def test_unknown_ids_are_404(self, client: TestClient, method: str, path: str) -> None:
        body = {"event_type": "video.failed"} if path.endswith("/test") else {}
        error = error_of(client.request(method, f"/v1/{path}", json=body), 404)
        assert error["code"] in ("webhook_endpoint_not_found", "webhook_delivery_not_found")


def test_by_default_internal_and_unencrypted_receivers_are_refused(valkey: str, tmp_path: Any) -> None:
    opened = open_services(Settings(redis_url=valkey, data_dir=tmp_path, auth="off"))
    with TestClient(create_app(opened)) as client:
        for url in ("http://93.184.216.34/", "https://127.0.0.1/", "http://127.0.0.1:9000/"):
            body = {"name": "orders", "url": url, "event_types": BOTH}
            assert error_of(client.post("/v1/webhook_endpoints", json=body), 400)["param"] == "url"
    opened.close()
