"""Many deliveries: the limit per host, the bounds of what is stored, and the metrics."""

from __future__ import annotations

import time

import pytest
from fastapi.testclient import TestClient

from service.api.app import create_app
from service.webhook_dispatcher.attempt import AttemptRunner
from service.webhooks.deliveries import DUE, key
from service.webhooks.retry_policy import NextState, State
from service.webhooks.sender import Outcome
from service.wiring import Services
from tests.factories import attempt_due_webhooks, deliver_webhooks
from tests.webhook_receivers import Receiver, status
from tests.webhook_steps import come_due, completed, deliveries, endpoint_at, fan_out, only


def test_a_slow_host_gets_no_more_attempts_than_its_limit(services: Services, runner: AttemptRunner) -> None:
    endpoint_at(services, "http://127.0.0.1:1/slow")
    for _ in range(3):
        completed(services)
    fan_out(services)
    store = services.webhooks.deliveries
    first, second, third = deliveries(services)
    taken = [
        store.start_attempt(d, "http://127.0.0.1:1/slow", timeout_s=20, per_host_limit=2)
        for d in (first, second, third)
    ]
    assert taken == [True, True, False]
    assert store.start_attempt(third, "http://127.0.0.1:2/other", timeout_s=20, per_host_limit=2)


def test_a_delivery_that_finds_its_host_at_the_limit_waits_longer_each_time_and_loses_no_attempt(
    services: Services,
) -> None:
    endpoint_at(services, "http://127.0.0.1:1/")
    completed(services)
    fan_out(services)
    store, waiting = services.webhooks.deliveries, only(services)
    waits: list[float] = []
    for _ in range(9):
        assert not store.start_attempt(waiting, "http://127.0.0.1:1/", timeout_s=20, per_host_limit=0)
        score = services.redis.zscore(DUE, waiting.id)
        waits.append(float(str(score)) - time.time())
    assert waits[0] < 2
    assert waits[3] > waits[0]
    assert 20 < waits[-1] < 60
    assert only(services).attempts == 0


def test_when_an_attempt_ends_the_delivery_that_waited_longest_for_the_host_is_due(services: Services) -> None:
    url = "http://127.0.0.1:1/"
    endpoint_at(services, url)
    for _ in range(3):
        completed(services)
    fan_out(services)
    store = services.webhooks.deliveries
    third, second, first = deliveries(services)
    assert [claim.delivery_id for claim in store.claim(30)] == [first.id, second.id, third.id]
    assert store.start_attempt(first, url, timeout_s=20, per_host_limit=1)
    for waiting in (second, third, second):
        assert not store.start_attempt(waiting, url, timeout_s=20, per_host_limit=1)
    assert store.claim(30) == []
    assert store.finish_attempt(first, url, Outcome(200, None, 0.1), NextState(State.DELIVERED))
    assert store.claim(30) == [(second.id, 0, "local")]


def test_a_retry_is_not_brought_forward_when_the_host_has_room_again(services: Services) -> None:
    url = "http://127.0.0.1:1/"
    endpoint_at(services, url)
    for _ in range(2):
        completed(services)
    fan_out(services)
    store = services.webhooks.deliveries
    second, first = deliveries(services)
    later = NextState(State.PENDING, time.time() + 99)
    failed = Outcome(500, "bad_status", 0.1)
    assert not store.start_attempt(first, url, timeout_s=20, per_host_limit=0)  # it waits, then gets its attempt
    assert store.start_attempt(first, url, timeout_s=20, per_host_limit=2)
    assert store.start_attempt(second, url, timeout_s=20, per_host_limit=2)
    assert store.finish_attempt(first, url, failed, later)
    assert store.finish_attempt(second, url, failed, later)
    assert store.claim(30) == []


def test_an_owners_deliveries_are_bounded_and_pending_ones_never_dropped(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.webhooks.deliveries.MAX_PER_OWNER", 2)
    endpoint_at(services, "http://127.0.0.1:1/")
    for _ in range(4):
        completed(services)
    fan_out(services)
    assert len(deliveries(services)) == 4, "all pending"
    for delivery in deliveries(services):
        services.webhooks.deliveries.fail(delivery, "test")
    services.webhooks.deliveries.trim("local")
    assert len(deliveries(services)) == 2
    assert len(services.redis.keys("ivm:webhook:delivery:*")) == 2


def test_records_expire(services: Services) -> None:
    endpoint_at(services, "http://127.0.0.1:1/")
    job = completed(services)
    fan_out(services)
    delivery = only(services)
    ttl = services.redis.ttl(key(delivery.id))
    assert 7 * 86_400 < int(str(ttl)) <= 8 * 86_400
    services.redis.delete(key(delivery.id))
    assert deliveries(services, job.id) == []
    assert services.webhooks.deliveries.claim(10) == []
    assert services.redis.zcard(DUE) == 0


def test_pending_deliveries_attempts_and_results_are_counted(services: Services, runner: AttemptRunner) -> None:
    def waits() -> tuple[float, float]:
        with TestClient(create_app(services)) as http:
            text = http.get("/metrics").text
        outbox, pending = (text.partition(f"\nivmix_webhook_{name} ")[2].split()[0] for name in ("outbox", "pending"))
        return float(outbox), float(pending)

    def counted(name: str, **labels: str) -> float | None:
        return runner.metrics.registry.get_sample_value(f"ivmix_webhook_{name}", labels)

    def ended() -> tuple[float | None, float | None]:
        return counted("deliveries_total", result="delivered"), counted("deliveries_total", result="failed")

    with Receiver(status(500), status(204)) as receiver:
        endpoint = endpoint_at(services, receiver.url)
        completed(services)
        assert waits() == (1, 0)
        deliver_webhooks(services, runner)
        assert waits() == (0, 1)
        assert ended() == (0, 0)
        come_due(services, only(services))
        deliver_webhooks(services, runner)
        assert waits() == (0, 0)
        completed(services)
        fan_out(services)
        services.webhooks.endpoints.delete("local", endpoint.id)
        attempt_due_webhooks(services, runner)
    assert ended() == (1, 1)
    assert [counted("attempts_total", outcome=outcome) for outcome in ("bad_status", "delivered")] == [1, 1]
    assert counted("attempt_seconds_count") == 2
