"""The API while Redis is unreachable, silent or full, and after it was killed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.api.app import create_app
from service.process.embedded_valkey import EmbeddedValkey
from service.settings import Settings
from service.wiring import Services
from tests.api_calls import create, error_of, services_for
from tests.factories import PROMPT


@pytest.fixture
def lonely(settings: Settings) -> Iterator[TestClient]:
    with socket.socket() as held:  # bound but not listening: connections are refused
        held.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{held.getsockname()[1]}"
        with (
            services_for(settings.model_copy(update={"redis_url": url})) as services,
            TestClient(create_app(services), raise_server_exceptions=False) as client,
        ):
            yield client


def test_every_endpoint_that_needs_redis_is_503_with_retry_after(lonely: TestClient) -> None:
    for answer in (
        lonely.post("/v1/videos", json={"prompt": PROMPT}),
        lonely.get("/v1/videos"),
        lonely.get("/v1/videos/video_x"),
        lonely.get("/v1/videos/video_x/content"),
        lonely.delete("/v1/videos/video_x"),
        lonely.get("/v1/events"),
    ):
        error = error_of(answer, 503)
        assert (error["type"], error["code"]) == ("server_error", "service_unavailable")
        assert int(answer.headers["retry-after"]) > 0


def test_it_is_alive_but_not_ready(lonely: TestClient) -> None:
    assert lonely.get("/livez").status_code == 200
    answer = lonely.get("/readyz")
    assert error_of(answer, 503)["code"] == "service_unavailable"
    assert answer.headers["retry-after"]


def test_a_server_that_hangs_is_not_ready_without_a_long_wait(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        with services_for(settings.model_copy(update={"redis_url": url})) as services:
            answer = TestClient(create_app(services)).get("/readyz")
    assert answer.status_code == 503
    assert answer.elapsed.total_seconds() < 4  # the probe's short timeout, not the 5 s of other commands


def test_a_server_that_cannot_write_is_not_ready_and_takes_no_job(client: TestClient, services: Services) -> None:
    made = create(client)
    services.redis.config_set("maxmemory", 1)
    try:
        assert error_of(client.get("/readyz"), 503)
        assert error_of(client.post("/v1/videos", json={"prompt": PROMPT}), 503)["code"] == "service_unavailable"
        assert client.get(f"/v1/videos/{made['id']}").status_code == 200
    finally:
        services.redis.config_set("maxmemory", 0)
    assert client.get("/readyz").json() == {"status": "ok"}


def test_an_accepted_video_is_there_after_redis_was_killed(tmp_path: Path) -> None:
    with (
        EmbeddedValkey(tmp_path) as url,
        services_for(Settings(redis_url=url, data_dir=tmp_path, auth="off")) as services,
    ):
        made = create(TestClient(create_app(services)))
    with (
        EmbeddedValkey(tmp_path) as url,
        services_for(Settings(redis_url=url, data_dir=tmp_path, auth="off")) as services,
    ):
        with TestClient(create_app(services)) as client:
            shown = client.get(f"/v1/videos/{made['id']}").json()
        assert (shown["status"], shown["queue_position"]) == ("queued", 0)
