"""The Redis user of docs/operations.md can do everything that the service does; its commands are checked at start."""

from __future__ import annotations

import re
import time
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient
from redis import Redis

from service.api.app import create_app
from service.redis_connection.permissions import commands_on
from service.settings import Settings
from service.wiring import Services, open_services
from tests.containers import ROOT
from tests.processes import finished_video, ivmix_up, wait_for, worker
from tests.valkey import Valkey
from tests.webhook_receivers import Receiver, status

# Denied to this user, and not needed: figures for /metrics, and what RQ says about itself.
OPTIONAL = {"info", "client|list", "config|get"}
HANDSHAKE = {
    "hello",
    "auth",
    "select",
    "client|setinfo",
    "client|maint_notifications",
    "client",
    "acl|setuser",
    "acl|log",
}


def documented_user() -> list[str]:
    """The rules after the user's name and password."""
    page = (ROOT / "docs" / "operations.md").read_text()
    found = re.search(r"ACL SETUSER ivmix on >PASSWORD (.+)", page)
    assert found, "docs/operations.md must show the user"
    return found[1].split()


def used_commands(redis: Redis) -> set[str]:
    return {name.removeprefix("cmdstat_") for name in redis.info("commandstats")}


def whole_life(http: httpx2.Client, receiver: Receiver) -> None:
    """A job with every kind of event, poll and end."""
    headers = {"idempotency-key": "one"}
    assert (
        http.post(
            "/v1/webhook_endpoints", json={"url": receiver.url, "name": "all", "event_types": ["video.completed"]}
        ).status_code
        == 200
    )
    body = {"prompt": "a red circle", "callback_url": receiver.url}
    first = http.post("/v1/videos", json=body, headers=headers).json()["id"]
    assert http.post("/v1/videos", json=body, headers=headers).json()["id"] == first
    other = http.post("/v1/videos", json={"prompt": "a red circle", "num_inference_steps": 50}).json()["id"]
    assert finished_video(http, first)["status"] == "completed"
    assert http.get(f"/v1/videos/{first}/content").status_code == 200
    with http.stream("GET", f"/v1/videos/{first}/events") as events:
        assert "completed" in next(line for line in events.iter_lines() if line.startswith("data"))
    with http.stream("GET", "/v1/events") as events:
        lines = events.iter_lines()
        assert next(line for line in lines if line == "event: queue")  # progress of the other job may come first
        assert http.post(f"/v1/videos/{other}/cancel").status_code == 200
        assert next(line for line in lines if line.startswith("event: video."))
    remix = http.post(f"/v1/videos/{first}/remix", json={"prompt": "a blue circle"}).json()["id"]
    assert http.post(f"/v1/videos/{remix}/cancel").status_code == 200
    assert http.get("/v1/videos", params={"limit": 1}).json()["data"]
    assert http.get("/v1/queue").status_code == 200
    assert http.delete(f"/v1/videos/{first}").status_code == 200
    receiver.wait(2, timeout_s=60)


def test_the_documented_user_suffices_for_a_whole_job_webhooks_and_maintenance(tmp_path: Path) -> None:
    with Valkey(tmp_path / "redis") as server, Redis.from_url(server.url, decode_responses=True) as admin:
        admin.execute_command("ACL", "SETUSER", "ivmix", "reset", "on", ">p", *documented_user())
        url = server.url.replace(":secret@", "ivmix:p@")
        environment = {
            "IVMIX_REDIS_URL": url,
            "IVMIX_WEBHOOK_ALLOW": "127.0.0.1",
            "IVMIX_WEBHOOK_ALLOW_HTTP": "true",
            "IVMIX_LOOK_S": "0.5",
            "IVMIX_MODELS": "demo",
        }
        data = tmp_path / "data"
        with (
            Receiver(status(200)) as receiver,
            ivmix_up(data, "--workers", "0", **environment) as (_, api),
            worker(environment | {"IVMIX_DATA_DIR": str(data), "FAKE_STEP_S": "0.1"}, "tests.fake_worker"),
            httpx2.Client(base_url=api, timeout=30) as http,
        ):
            whole_life(http, receiver)
            wait_for(lambda: admin.zcard("ivm:ended") or None)
            metrics = http.get("/metrics").text
            time.sleep(1)  # maintenance looks twice
        denied = {(entry["context"], entry["object"]) for entry in admin.acl_log()}
        assert {name for _, name in denied} <= OPTIONAL, denied
        assert "ivmix_job_store_up 1.0" in metrics
        assert "ivmix_queue_waiting" in metrics
        assert "ivmix_job_store_memory_bytes" not in metrics
        tried = {str(command[0]).lower() for command in commands_on("ivm:x")}
        unchecked = (
            {name for name in used_commands(admin) if name.partition("|")[0] not in tried} - HANDSHAKE - OPTIONAL
        )
        assert not unchecked, "add them to commands_on"


@pytest.mark.parametrize("denied", ["-info", "-@dangerous", "-info -memory -slowlog -config -latency -client"])
def test_metrics_leave_out_only_what_may_not_be_read(denied: str, services: Services, settings: Settings) -> None:
    services.redis.execute_command("ACL", "SETUSER", "meter", "reset", "on", ">p", "~*", "+@all", *denied.split())
    url = re.sub("//.*@", "//meter:p@", str(settings.redis_url))
    limited = open_services(settings.model_copy(update={"redis_url": url}))
    with TestClient(create_app(limited)) as http:
        shown = http.get("/metrics").text
    limited.close()
    assert "ivmix_job_store_up 1.0" in shown
    assert 'ivmix_queue_waiting{model="demo"} 0.0' in shown
    assert "ivmix_webhook_pending 0.0" in shown
    assert "memory_bytes" not in re.sub("process_.*", "", shown)
