"""Webhooks to receivers on this machine, over plain HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.settings import Settings
from service.webhook_dispatcher.attempt import AttemptRunner
from service.webhook_dispatcher.metrics import DispatcherMetrics
from service.wiring import Services
from tests.webhook_receivers import Receiver


@pytest.fixture
def settings(settings: Settings) -> Settings:
    changes = {
        "webhook_allow": ("127.0.0.0/8",),
        "webhook_allow_http": True,
        "webhook_retry_delays_s": (100.0, 1000.0, 10_000.0),
        "webhook_timeout_s": 20.0,
    }
    return settings.model_copy(update=changes)


@pytest.fixture
def runner(services: Services) -> AttemptRunner:
    return AttemptRunner(services.settings, services.webhooks, DispatcherMetrics())


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as opened:
        yield opened
