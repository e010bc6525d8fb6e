"""Thousands of requests made from the contract, good and bad ones, against the running server: it must keep to it."""

from __future__ import annotations

import os
import re

import pytest

from service.api import sse
from service.settings import Settings
from service.wiring import open_services
from tests.conftest import serve
from tests.dispatching import dispatching
from tests.in_process_worker import replaying
from tests.schemathesis_cli import fuzz

SECONDS = int(os.environ.get("SCHEMATHESIS_SECONDS", "5"))  # with a key, half of it without; `make soak` runs longer
SEED = int(os.environ.get("SCHEMATHESIS_SEED", "1"))

pytestmark = pytest.mark.timeout(SECONDS + 280)


SLOW = pytest.mark.slow  # `make soak` runs them longer; without a key test_auth.py asks every endpoint


@pytest.mark.parametrize(
    ("auth", "has_key"),
    [
        pytest.param("keys", True, id="a key"),
        pytest.param("keys", False, id="no key", marks=SLOW),
        pytest.param("off", False, id="open", marks=SLOW),
    ],
)
def test_the_server_keeps_to_its_contract(
    settings: Settings, auth: str, has_key: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "MAX_DURATION_S", 0.5)  # Schemathesis reads a stream to its end
    changes = {"auth": auth, "max_waiting": 1000, "sync_timeout_s": 60.0}
    services = open_services(settings.model_copy(update=changes))
    _, secret = services.keys.create("fuzzer", requests_per_minute=1_000_000)
    headers = {"Authorization": f"Bearer {secret}"} if has_key else {}
    with serve(services) as url, replaying(services), dispatching(services):
        ran = fuzz(url, headers=headers, seconds=SECONDS if has_key else SECONDS // 2, seed=SEED)
    services.close()
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    assert re.search(r"37 selected|Selected: +37/37", ran.stdout), ran.stdout[-2000:]
