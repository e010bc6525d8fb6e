"""Nothing that a client sends adds labels without a bound."""

from __future__ import annotations

import secrets

import pytest
from fastapi.testclient import TestClient

from service.api.middleware import METHODS

PATHS = ("/v1/videos", "/v1/videos/video_x", "/v1/webhook_endpoints", "/livez", "/metrics", "/docs", "/openapi.json")


def metrics(client: TestClient) -> str:
    return client.get("/metrics").text


@pytest.fixture
def usual(client: TestClient) -> str:
    """After ordinary requests."""
    for method in sorted(METHODS):
        for path in PATHS:
            client.request(method, path)
    return metrics(client)


def invented(size: int) -> str:
    return secrets.token_hex(size // 2).upper()


def test_invented_methods_are_one_label(client: TestClient, usual: str) -> None:
    for i in range(1000):
        client.request(invented(16 if i % 50 else 10_000), PATHS[i % len(PATHS)])
    after = metrics(client)
    assert len(after) < 2 * len(usual)
    assert 'method="other",route="none"' in after


@pytest.mark.slow
def test_even_of_a_new_process_they_do_not_double_the_size(client: TestClient) -> None:
    metrics(client)
    before = metrics(client)
    for i in range(1000):
        client.request(invented(16), PATHS[i % len(PATHS)])
    assert len(metrics(client)) < 2 * len(before)


def test_invented_paths_models_and_ids_are_no_labels(client: TestClient, usual: str) -> None:
    for _ in range(100):
        word = invented(100)
        client.get(f"/{word}")
        client.request(word, f"/{word}")
        client.get(f"/v1/{word}/{word}")
        client.get(f"/v1/videos/{word}")
        client.get(f"/v1/models/{word}")
        client.get(f"/v1/webhook_deliveries/{word}", headers={"authorization": f"Bearer {word}"})
        client.get("/v1/videos", params={"status": word, word: word})
        client.post("/v1/videos", json={"prompt": "x", "model": word})
    assert len(metrics(client)) < 2 * len(usual)


@pytest.mark.parametrize("method", ["PROPFIND", "TRACE", "CONNECT", "QUERY", "GETS"])
def test_a_method_that_is_not_ours_is_other(client: TestClient, method: str) -> None:
    client.request(method, "/livez")
    assert 'method="other"' in metrics(client)
