"""Retries and redeliveries: their schedule, their ends, and their log."""

from __future__ import annotations

import time

import pytest

from service.jobs.model import Callback
from service.webhook_dispatcher.attempt import AttemptRunner
from service.webhooks.deliveries import DUE, MAX_LOGGED_ATTEMPTS
from service.webhooks.retry_policy import State
from service.webhooks.sender import Sender
from service.webhooks.url_policy import UrlPolicy
from service.wiring import Services
from tests.factories import deliver_webhooks
from tests.webhook_receivers import Receiver, raw, status
from tests.webhook_steps import come_due, completed, deliveries, endpoint_at, fan_out, only, with_delays, with_sender


def test_a_rejected_delivery_is_retried_on_schedule_under_the_same_webhook_id(
    services: Services, runner: AttemptRunner
) -> None:
    with Receiver(status(500), status(503, retry_after="4000"), status(200)) as receiver:
        endpoint = endpoint_at(services, receiver.url)
        completed(services)
        began = time.time()
        deliver_webhooks(services, runner)
        waiting = only(services)
        assert (waiting.state, waiting.attempts, waiting.error) == (State.PENDING, 1, "bad_status")
        assert waiting.next_attempt_at is not None
        assert began + 100 <= waiting.next_attempt_at <= time.time() + 120
        assert services.redis.zscore(DUE, waiting.id) == pytest.approx(waiting.next_attempt_at)
        deliver_webhooks(services, runner)
        assert len(receiver.received) == 1, "not before its time"
        come_due(services, waiting)
        deliver_webhooks(services, runner)
        second = only(services)
        assert second.next_attempt_at is not None
        assert began + 4000 <= second.next_attempt_at
        come_due(services, second)
        deliver_webhooks(services, runner)
        done = only(services)
        assert (done.state, done.attempts, done.next_attempt_at) == (State.DELIVERED, 3, None)
        assert [(a.status_code, a.error) for a in done.log] == [
            (500, "bad_status"),
            (503, "bad_status"),
            (200, None),
        ]
        assert {got.headers["webhook-id"] for got in receiver.received} == {done.id}
        assert len({got.body for got in receiver.received}) == 1
        for got in receiver.received:
            assert got.event(endpoint.secrets[0].value).type == "video.completed"


def test_after_the_last_attempt_a_delivery_has_failed(services: Services, runner: AttemptRunner) -> None:
    with Receiver(status(500)) as receiver:
        endpoint_at(services, receiver.url)
        completed(services)
        for _ in range(4):
            deliver_webhooks(services, runner)
            come_due(services, only(services)) if only(services).state is State.PENDING else None
        deliver_webhooks(services, runner)
        failed = only(services)
        assert (failed.state, failed.attempts, len(receiver.received)) == (State.FAILED, 4, 4)
        assert failed.ended_at is not None
        assert services.redis.zcard(DUE) == 0


def test_gone_disables_the_endpoint_until_it_is_changed(services: Services, runner: AttemptRunner) -> None:
    with Receiver(status(410), status(204)) as receiver:
        endpoint = endpoint_at(services, receiver.url)
        completed(services)
        deliver_webhooks(services, runner)
        assert (only(services).state, only(services).attempts) == (State.FAILED, 1)
        disabled = services.webhooks.endpoints.get("local", endpoint.id)
        assert not disabled.is_enabled
        completed(services)
        deliver_webhooks(services, runner)
        assert len(receiver.received) == 1
        services.webhooks.endpoints.update("local", endpoint.id, name="again")
        completed(services)
        deliver_webhooks(services, runner)
        assert len(receiver.received) == 2


def test_gone_ends_a_callback_without_touching_endpoints(
    services: Services, runner: AttemptRunner, receiver: Receiver
) -> None:
    endpoint = endpoint_at(services, receiver.url)
    with Receiver(status(410)) as gone:
        completed(services, callback=Callback(url=gone.url))
        deliver_webhooks(services, runner)
    assert sorted(d.state for d in deliveries(services)) == [State.DELIVERED, State.FAILED]
    assert services.webhooks.endpoints.get("local", endpoint.id).is_enabled


@pytest.mark.parametrize("change", ["delete", "disable"])
def test_a_pending_delivery_to_a_deleted_or_disabled_endpoint_ends_without_an_attempt(
    services: Services, runner: AttemptRunner, change: str
) -> None:
    with Receiver(status(500)) as receiver:
        endpoint = endpoint_at(services, receiver.url)
        completed(services)
        deliver_webhooks(services, runner)
        if change == "delete":
            services.webhooks.endpoints.delete("local", endpoint.id)
        else:
            services.webhooks.endpoints.disable(endpoint.id)
        come_due(services, only(services))
        deliver_webhooks(services, runner)
        ended = only(services)
        assert (ended.state, ended.attempts, ended.error) == (State.FAILED, 1, f"endpoint_{change}d")
        assert len(receiver.received) == 1


def test_a_corrected_url_is_used_for_pending_deliveries(
    services: Services, runner: AttemptRunner, receiver: Receiver
) -> None:
    with Receiver(status(404)) as wrong:
        endpoint = endpoint_at(services, wrong.url)
        completed(services)
        deliver_webhooks(services, runner)
        services.webhooks.endpoints.update("local", endpoint.id, url=receiver.url)
        come_due(services, only(services))
        deliver_webhooks(services, runner)
    assert (len(receiver.received), only(services).state) == (1, State.DELIVERED)


def test_a_url_that_is_no_longer_allowed_is_refused_when_a_webhook_is_sent(
    services: Services, runner: AttemptRunner, receiver: Receiver
) -> None:
    """It was allowed when it was registered; since then its addresses or the settings have changed."""
    endpoint_at(services, receiver.url)
    completed(services)
    stricter = with_sender(runner, Sender(UrlPolicy(allow_http=True)))
    deliver_webhooks(services, stricter)
    assert only(services).error == "refused_url"
    assert receiver.received == []


def test_an_attempt_at_a_slow_receiver_is_aborted_and_logged(services: Services, runner: AttemptRunner) -> None:
    with Receiver(raw(b"", pause_s=30)) as receiver:
        endpoint_at(services, receiver.url)
        completed(services)
        quick = with_sender(runner, Sender(services.webhooks.url_policy, timeout_s=1.0))
        deliver_webhooks(services, quick)
        assert only(services).log[0].error == "timeout"
        assert only(services).state is State.PENDING


def test_the_log_of_attempts_is_bounded(services: Services, runner: AttemptRunner) -> None:
    with Receiver(status(500)) as receiver:
        endpoint_at(services, receiver.url)
        completed(services)
        fan_out(services)
        patient = with_delays(runner, (0,) * 100)
        for number in range(MAX_LOGGED_ATTEMPTS + 3):
            patient.run(only(services).id, number)
        assert len(receiver.received) == MAX_LOGGED_ATTEMPTS + 3
        assert len(only(services).log) == MAX_LOGGED_ATTEMPTS


def test_a_redelivery_has_the_whole_retry_schedule_ahead(services: Services, runner: AttemptRunner) -> None:
    with Receiver(status(500)) as receiver:
        endpoint_at(services, receiver.url)
        completed(services)
        fan_out(services)
        impatient = with_delays(runner, (0,))
        for number in range(2):
            impatient.run(only(services).id, number)
        assert only(services).state is State.FAILED
        services.webhooks.deliveries.redeliver("local", only(services).id)
        deliver_webhooks(services, runner)
        waiting = only(services)
        assert (waiting.state, waiting.attempts, len(waiting.log)) == (State.PENDING, 3, 3)
        assert waiting.next_attempt_at == pytest.approx(time.time() + 110, abs=60)
        assert len(receiver.received) == 3


def test_a_redelivery_does_not_touch_an_attempt_in_progress(services: Services) -> None:
    endpoint_at(services, "http://127.0.0.1:1/")
    completed(services)
    fan_out(services)
    store = services.webhooks.deliveries
    assert store.start_attempt(only(services), "http://127.0.0.1:1/", timeout_s=20, per_host_limit=1)
    taken = only(services)
    assert store.redeliver("local", taken.id) == taken
