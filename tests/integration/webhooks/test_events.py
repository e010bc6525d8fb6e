"""Which events are announced, to whom, and what they contain."""

from __future__ import annotations

import json
import time

import pytest
from openai import InvalidWebhookSignatureError

from service.jobs.model import JobError, JobState
from service.jobs.outbox import KEEP_S, OUTBOX
from service.webhook_dispatcher.attempt import AttemptRunner
from service.webhook_dispatcher.fan_out import EVENT_OF
from service.webhooks.deliveries import DUE
from service.webhooks.retry_policy import State
from service.wire.video import Renderer
from service.wire.webhook import OMITTED_FIELDS
from service.wiring import Services
from tests.factories import PROMPT, deliver_webhooks, make_output
from tests.webhook_receivers import Receiver
from tests.webhook_steps import completed, created, deliveries, endpoint_at, fan_out, only

ERROR = JobError(code="out_of_memory", message="Too large.")


def test_a_completed_video_is_announced_with_a_signature_that_the_sdk_verifies(
    services: Services, runner: AttemptRunner, receiver: Receiver
) -> None:
    endpoint = endpoint_at(services, f"{receiver.url}/hook")
    job = completed(services, metadata={"order": "7"})
    deliver_webhooks(services, runner)
    (got,) = receiver.received
    event = got.event(endpoint.secrets[0].value)
    assert (event.type, event.data.id) == ("video.completed", job.id)
    with pytest.raises(InvalidWebhookSignatureError):
        got.event("whsec_" + "A" * 44)
    body = json.loads(got.body)
    assert list(body)[:5] == ["id", "object", "created_at", "type", "timestamp"]
    assert body["object"] == "event"
    assert body["data"]["status"] == "completed"
    assert body["data"]["metadata"] == {"order": "7"}
    delivery = only(services)
    assert got.headers["webhook-id"] == delivery.id
    assert (delivery.state, delivery.attempts, delivery.event_id) == (State.DELIVERED, 1, body["id"])
    assert (services.redis.zcard(DUE), services.redis.xlen(OUTBOX)) == (0, 0)


def test_an_event_contains_the_video_as_the_api_shows_it_without_its_prompts(
    services: Services, runner: AttemptRunner, receiver: Receiver
) -> None:
    endpoint_at(services, receiver.url)
    job = completed(services)
    deliver_webhooks(services, runner)
    ended = services.store.get(job.id)
    assert ended is not None
    shown = Renderer(services.settings, services.storage).video(ended).model_dump(mode="json")
    assert json.loads(receiver.received[0].body)["data"] == {
        name: value for name, value in shown.items() if name not in OMITTED_FIELDS
    }
    assert PROMPT.encode() not in receiver.received[0].body


def test_the_event_of_a_failed_video_contains_its_error(
    services: Services, runner: AttemptRunner, receiver: Receiver
) -> None:
    endpoint_at(services, receiver.url)
    job = created(services)
    services.store.start(job.id, "e1")
    assert services.store.fail(job.id, "e1", ERROR)
    deliver_webhooks(services, runner)
    body = json.loads(receiver.received[0].body)
    assert (body["type"], body["data"]["status"]) == ("video.failed", "failed")
    assert body["data"]["error"] == {"code": "out_of_memory", "message": "Too large."}


@pytest.mark.parametrize("started", [False, True])
def test_a_cancelled_video_is_announced_as_failed(
    services: Services, runner: AttemptRunner, receiver: Receiver, started: bool
) -> None:
    endpoint_at(services, receiver.url)
    job = created(services)
    if started:
        services.store.start(job.id, "e1")
    services.store.cancel(job.id)
    if started:
        assert services.redis.xlen(OUTBOX) == 0
        services.store.finish_cancel(job.id, "e1")
    deliver_webhooks(services, runner)
    body = json.loads(receiver.received[0].body)
    assert (body["type"], body["data"]["error"]["code"]) == ("video.failed", "cancelled")


def test_a_job_that_is_ended_twice_is_one_event(services: Services) -> None:
    endpoint_at(services, "http://127.0.0.1:1/")
    job = completed(services)
    assert services.store.complete(job.id, "e1", make_output(), {}, None)
    services.store.fail(job.id, None, ERROR)
    services.store.cancel(job.id)
    fan_out(services)
    assert len(deliveries(services)) == 1


def test_the_event_of_a_video_that_is_deleted_at_once_is_still_delivered(
    services: Services, runner: AttemptRunner, receiver: Receiver
) -> None:
    endpoint_at(services, receiver.url)
    job = completed(services)
    assert services.store.delete(job.id)
    deliver_webhooks(services, runner)
    assert json.loads(receiver.received[0].body)["data"]["id"] == job.id


def test_endpoints_get_the_events_they_subscribed_to_of_their_owner_only(
    services: Services, runner: AttemptRunner
) -> None:
    with Receiver() as ends, Receiver() as failures, Receiver() as stranger:
        endpoint_at(services, ends.url, ("video.completed",))
        endpoint_at(services, failures.url, ("video.failed",))
        endpoint_at(services, stranger.url, owner="other")
        completed(services)
        deliver_webhooks(services, runner)
        assert [len(r.received) for r in (ends, failures, stranger)] == [1, 0, 0]
        completed(services, owner="other")
        deliver_webhooks(services, runner)
        assert [len(r.received) for r in (ends, failures, stranger)] == [1, 0, 1]


def test_every_endpoint_gets_the_same_event_under_a_separate_webhook_id(
    services: Services, runner: AttemptRunner, receiver: Receiver
) -> None:
    for _ in range(3):
        endpoint_at(services, receiver.url)
    completed(services)
    deliver_webhooks(services, runner)
    assert len({got.headers["webhook-id"] for got in receiver.received}) == 3
    assert len({json.loads(got.body)["id"] for got in receiver.received}) == 1


def test_without_endpoint_and_callback_nothing_is_stored(services: Services) -> None:
    endpoint = endpoint_at(services, "http://127.0.0.1:1/")
    services.webhooks.endpoints.delete("local", endpoint.id)
    completed(services)
    services.store.cancel(created(services).id)
    assert services.redis.xlen(OUTBOX) == 0


def test_without_a_dispatcher_the_outbox_drops_what_is_too_old(services: Services) -> None:
    endpoint_at(services, "http://127.0.0.1:1/")
    old_ms = int((time.time() - KEEP_S - 60) * 1000)
    for i in range(500):
        services.redis.xadd(OUTBOX, {"id": f'"video_{i}"'}, id=f"{old_ms}-{i + 1}")
    completed(services)
    assert services.redis.xlen(OUTBOX) < 200


@pytest.mark.parametrize("damaged", ['"video_x"', "garbage"])
def test_an_unreadable_entry_does_not_block_the_others(services: Services, damaged: str) -> None:
    """Found by the fault tests: an entry that was not even JSON ended every dispatcher, repeatedly."""
    endpoint_at(services, "http://127.0.0.1:1/")
    services.redis.xadd(OUTBOX, {"id": damaged})
    completed(services)
    fan_out(services)
    assert len(deliveries(services)) == 1


def test_every_terminal_state_has_an_event() -> None:
    assert set(EVENT_OF) == {state for state in JobState if state.is_terminal}
