"""Calls of the HTTP API that many tests make, and checks of what it answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
from fastapi.testclient import TestClient

from service.settings import Settings
from service.wiring import Services, open_services
from tests.factories import PROMPT


def create(client: TestClient, **body: Any) -> dict[str, Any]:
    return answer_of(client.post("/v1/videos", json={"prompt": PROMPT} | body))


def answer_of(response: httpx2.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return response.json()


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
