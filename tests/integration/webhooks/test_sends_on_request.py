"""Test events and redeliveries: sent by the dispatcher, and limited, because anybody with a key can ask for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from service.api.app import create_app
from service.api.rate_limits import OWNERS_PER_HOST
from service.api.routes import send_test_event
from service.settings import Settings
from service.webhook_dispatcher.attempt import AttemptRunner
from service.wiring import Services
from tests.api_calls import answer_of, error_of
from tests.factories import attempt_due_webhooks, deliver_webhooks
from tests.webhook_calls import register
from tests.webhook_receivers import Receiver, status
from tests.webhook_steps import completed, deliveries, only

PER_MINUTE = 4
EVENT = {"event_type": "video.failed"}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_sends_per_minute": PER_MINUTE})


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, services: Services) -> Services:
    """Requests do not wait: there is no dispatcher."""
    monkeypatch.setattr(send_test_event, "PICKUP_S", 0.0)
    monkeypatch.setattr(send_test_event, "POLL_INTERVAL_S", 0.01)
    return replace(services, settings=services.settings.model_copy(update={"webhook_timeout_s": 0.01}))


@pytest.fixture
def client(impatient: Services) -> TestClient:
    return TestClient(create_app(impatient), raise_server_exceptions=False)


NewClient = Callable[[], TestClient]


@pytest.fixture
def new_client(impatient: Services) -> NewClient:
    """new_client(): a client with a separate API key."""
    app = create_app(replace(impatient, settings=impatient.settings.model_copy(update={"auth": "keys"})))

    def make() -> TestClient:
        _, secret = impatient.keys.create("test")
        return TestClient(app, headers={"authorization": f"Bearer {secret}"}, raise_server_exceptions=False)

    return make


def statuses(client: TestClient, path: str, count: int) -> list[int]:
    return [client.post(path, json=EVENT).status_code for _ in range(count)]


def test_the_api_sends_nothing_and_the_result_can_be_read_later(
    client: TestClient, services: Services, runner: AttemptRunner, receiver: Receiver
) -> None:
    made = register(client, receiver.url)
    error = error_of(client.post(f"/v1/webhook_endpoints/{made['id']}/test", json=EVENT), 400)
    assert receiver.received == []
    shown = answer_of(client.get("/v1/webhook_deliveries"))["data"][0]
    assert (shown["status"], shown["id"] in error["message"]) == ("pending", True)
    attempt_due_webhooks(services, runner)
    assert receiver.received[0].event(made["signing_secret"]).type == "video.failed"
    assert answer_of(client.get(f"/v1/webhook_deliveries/{shown['id']}"))["status"] == "delivered"


def test_a_test_is_not_retried_but_may_be_redelivered(
    client: TestClient, services: Services, runner: AttemptRunner
) -> None:
    with Receiver(status(500), status(204)) as receiver:
        made = register(client, receiver.url)
        client.post(f"/v1/webhook_endpoints/{made['id']}/test", json=EVENT)
        attempt_due_webhooks(services, runner)
        assert (only(services).state, only(services).attempts) == ("failed", 1)
        answer_of(client.post(f"/v1/webhook_deliveries/{only(services).id}/redeliver"))
        attempt_due_webhooks(services, runner)
        assert (only(services).state, only(services).attempts) == ("delivered", 2)


def test_a_disabled_endpoint_can_be_tested_and_stays_disabled(
    client: TestClient, services: Services, runner: AttemptRunner, receiver: Receiver
) -> None:
    made = register(client, receiver.url)
    services.webhooks.endpoints.disable(made["id"])
    client.post(f"/v1/webhook_endpoints/{made['id']}/test", json=EVENT)
    attempt_due_webhooks(services, runner)
    assert len(receiver.received) == 1
    assert answer_of(client.get(f"/v1/webhook_endpoints/{made['id']}"))["enabled"] is False


def test_tests_of_one_key_are_limited(new_client: NewClient, receiver: Receiver) -> None:
    greedy, other = new_client(), new_client()
    paths = [f"/v1/webhook_endpoints/{register(greedy, receiver.url)['id']}/test" for _ in range(2)]
    assert statuses(greedy, paths[0], PER_MINUTE) == [400] * PER_MINUTE
    refused = greedy.post(paths[1], json=EVENT)
    assert error_of(refused, 429)["code"] == "rate_limit_exceeded"
    assert f"{PER_MINUTE} test events and redeliveries per minute" in refused.text
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    others_path = f"/v1/webhook_endpoints/{register(other, receiver.url)['id']}/test"
    assert statuses(other, others_path, PER_MINUTE) == [400] * PER_MINUTE


def test_redeliveries_count_against_the_same_limit(
    client: TestClient, services: Services, runner: AttemptRunner, receiver: Receiver
) -> None:
    made = register(client, receiver.url)
    completed(services)
    deliver_webhooks(services, runner)
    path = f"/v1/webhook_deliveries/{deliveries(services)[0].id}/redeliver"
    assert statuses(client, path, PER_MINUTE) == [200] * PER_MINUTE
    assert error_of(client.post(path), 429)["code"] == "rate_limit_exceeded"
    assert statuses(client, f"/v1/webhook_endpoints/{made['id']}/test", 1) == [429]


def test_many_keys_together_are_no_cannon_at_one_host(new_client: NewClient, receiver: Receiver) -> None:
    counts: list[int] = []
    for i in range(OWNERS_PER_HOST + 1):
        client = new_client()
        path = f"/v1/webhook_endpoints/{register(client, f'{receiver.url}/{i}')['id']}/test"
        counts.append(statuses(client, path, PER_MINUTE).count(400))
    assert counts == [PER_MINUTE] * OWNERS_PER_HOST + [0]


@pytest.mark.parametrize("path", ["webhook_endpoints/we_1/test", "webhook_deliveries/whd_1/redeliver"])
def test_requests_for_what_does_not_exist_are_not_counted(
    client: TestClient, services: Services, runner: AttemptRunner, receiver: Receiver, path: str
) -> None:
    assert statuses(client, f"/v1/{path}", 2 * PER_MINUTE) == [404] * 2 * PER_MINUTE
    made = register(client, receiver.url)
    assert statuses(client, f"/v1/webhook_endpoints/{made['id']}/test", 1) == [400]
