"""What holds for every response: the error body, its codes, the request id. Also the list of models."""

from __future__ import annotations

import logging
import re

import pytest
from fastapi.testclient import TestClient

from service.wiring import Services
from tests.api_calls import error_of


class TestModels:
    def test_models_list_their_limits(self, client: TestClient) -> None:
        listed = client.get("/v1/models").json()
        assert listed["object"] == "list"
        [model] = listed["data"]
        assert client.get("/v1/models/demo").json() == model
        assert (model["id"], model["object"], model["sizes"]) == ("demo", "model", ["384x384"])
        assert model["num_inference_steps"] == {"default": 16, "min": 1, "max": 200}
        assert "circle" in model["can_draw"]
        assert model["samplers"] == ["iv-mixed", "ddim", "zigzag", "freeinit", "fused", "evs", "official"]
        assert {"I-I", "IV-IV", "II-VV", "RR-II"} < set(model["combinations"])
        assert model["max_cost"] == 1.2e9
        assert (model["guidance_scale"]["default"], model["image_guidance_scale"]) == (2.25, 1.5)
        assert "path" not in model

    def test_an_unknown_model_is_404(self, client: TestClient) -> None:
        assert error_of(client.get("/v1/models/sora-2"), 404)["code"] == "model_not_found"


class TestEveryResponse:
    @pytest.mark.parametrize("path", ["/page/none.js", "/v1", "/v1/nothing", "/v1/videos/a/b/c", "/videos"])
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
        services.redis.set("rq:queue:gpu-demo", "a secret, and no list")
        with caplog.at_level(logging.ERROR, "ivmix.api"):
            answer = client.get("/v1/queue", headers={"x-request-id": "my-1"})
        error = error_of(answer, 500)
        assert (error["type"], error["code"]) == ("server_error", "internal_error")
        assert "secret" not in answer.text + caplog.text
        assert answer.headers["x-request-id"] == "my-1"
        assert "my-1" in caplog.text
        assert "WRONGTYPE" in caplog.text

    def test_the_clients_request_id_is_echoed(self, client: TestClient) -> None:
        assert client.get("/livez", headers={"x-request-id": "my-1"}).headers["x-request-id"] == "my-1"

    @pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a\tb"])
    def test_an_invalid_request_id_is_replaced(self, client: TestClient, given: str) -> None:
        made = client.get("/livez", headers={"x-request-id": given}).headers["x-request-id"]
        assert re.fullmatch(r"req_[0-9a-f]{32}", made)

    def test_the_openapi_description_is_served(self, client: TestClient) -> None:
        assert "VideoRequest" in client.get("/openapi.json").json()["components"]["schemas"]
