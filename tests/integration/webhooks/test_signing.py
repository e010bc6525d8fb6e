"""The secrets and the time that sign a webhook."""

from __future__ import annotations

import time

import pytest
from openai import InvalidWebhookSignatureError

from service.jobs.model import Callback
from service.webhook_dispatcher.attempt import AttemptRunner
from service.wiring import Services
from tests.factories import deliver_webhooks
from tests.webhook_receivers import Receiver, status
from tests.webhook_steps import come_due, completed, endpoint_at, only


def test_every_attempt_is_signed_with_its_own_time(services: Services, runner: AttemptRunner) -> None:
    with Receiver(status(500)) as receiver:
        endpoint_at(services, receiver.url)
        completed(services)
        deliver_webhooks(services, runner)
        first = int(receiver.received[0].headers["webhook-timestamp"])
        assert abs(first - time.time()) < 200
        while int(time.time()) == first:
            time.sleep(0.05)
        come_due(services, only(services))
        deliver_webhooks(services, runner)
        assert int(receiver.received[1].headers["webhook-timestamp"]) > first


def test_a_rotation_signs_with_both_secrets_or_with_the_new_one_only(
    services: Services, runner: AttemptRunner, receiver: Receiver
) -> None:
    endpoints = services.webhooks.endpoints
    endpoint = endpoint_at(services, receiver.url)
    kept = endpoints.rotate("local", endpoint.id, keep_old=True)
    completed(services)
    deliver_webhooks(services, runner)
    for secret in (kept.secrets[0].value, endpoint.secrets[0].value):
        assert receiver.received[0].event(secret).type == "video.completed"
    dropped = endpoints.rotate("local", endpoint.id, keep_old=False)
    completed(services)
    deliver_webhooks(services, runner)
    assert receiver.received[1].event(dropped.secrets[0].value).type == "video.completed"
    for old in (kept, endpoint):
        with pytest.raises(InvalidWebhookSignatureError):
            receiver.received[1].event(old.secrets[0].value)


def test_a_retry_is_signed_with_the_secrets_of_that_time(services: Services, runner: AttemptRunner) -> None:
    with Receiver(status(500), status(200)) as receiver:
        endpoint = endpoint_at(services, receiver.url)
        completed(services)
        deliver_webhooks(services, runner)
        fresh = services.webhooks.endpoints.rotate("local", endpoint.id, keep_old=False)
        come_due(services, only(services))
        deliver_webhooks(services, runner)
        assert receiver.received[1].event(fresh.secrets[0].value).type == "video.completed"


def test_the_callback_secret_rotates_the_same_way(
    services: Services, runner: AttemptRunner, receiver: Receiver
) -> None:
    endpoints = services.webhooks.endpoints
    old = endpoints.callback_secrets("local")[0].value
    assert endpoints.callback_secrets("local")[0].value == old
    assert endpoints.callback_secrets("other")[0].value != old
    new = endpoints.rotate_callback_secret("local", keep_old=True)[0].value
    completed(services, callback=Callback(url=receiver.url))
    deliver_webhooks(services, runner)
    assert old != new
    for secret in (old, new):
        assert receiver.received[0].event(secret).type == "video.completed"
