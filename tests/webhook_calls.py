"""Calls of the webhook routes."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient

from service.wiring import Services
from tests.api_calls import answer_of
from tests.factories import complete_job

BOTH = ["video.completed", "video.failed"]


def register(client: TestClient, url: str, **over: Any) -> dict[str, Any]:
    return answer_of(
        client.post("/v1/webhook_endpoints", json={"name": "orders", "url": url, "event_types": BOTH} | over)
    )


def complete(services: Services, video_id: str) -> None:
    assert services.store.start(video_id, "e1")
    assert complete_job(services.store, video_id, "e1")
