"""The receiver in docs/webhooks.md runs as printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import httpx2
import pytest

from service.settings import Settings
from service.wiring import Services
from tests.api_calls import answer_of
from tests.doc_examples import DOCS, example
from tests.factories import deliver_webhooks
from tests.ports import free_port
from tests.processes import PROMPT, wait_for
from tests.webhook_calls import complete

GUIDE = DOCS / "webhooks.md"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_allow": ("127.0.0.0/8",), "webhook_allow_http": True})


def test_the_receiver_is_short_and_prints_a_verified_event(server: str, services: Services) -> None:
    code, port = example(GUIDE, "python", "BaseHTTPRequestHandler"), free_port()
    assert len([line for line in code.splitlines() if line]) == 15
    with httpx2.Client(base_url=server, timeout=60) as http:
        registering, listing = example(GUIDE, "bash", "webhook_endpoints").replace("\\\n", " ").strip().splitlines()
        body = shlex.split(registering)[-1].replace(":9000", f":{port}")
        path = "/v1/webhook_endpoints"
        assert path in registering
        made = answer_of(http.post(path, content=body, headers={"content-type": "application/json"}))
        receiver = subprocess.Popen(
            [sys.executable, "-c", code.replace("9000", str(port))],
            env={**os.environ, "WEBHOOK_SECRET": made["signing_secret"]},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_for(lambda: answers(port))
            video = answer_of(http.post("/v1/videos", json={"prompt": PROMPT}))["id"]
            complete(services, video)
            deliver_webhooks(services)
            assert receiver.stdout is not None
            assert receiver.stdout.readline() == f"video.completed {video}\n"
            path = re.findall(r"/v1/\w+", listing)[0]
            assert answer_of(http.get(path))["data"][0]["status"] == "delivered"
            forged = {"webhook-id": "whd_1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
            assert httpx2.post(f"http://127.0.0.1:{port}/", content=b"{}", headers=forged).status_code == 400
        finally:
            receiver.kill()
            receiver.communicate()


def answers(port: int) -> bool | None:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/").status_code == 501
    except httpx2.HTTPError:
        return None
