"""From the end of a job to a signed POST, with real store, Valkey and receiver; a test takes each step itself."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai import InvalidWebhookSignatureError
from rq import Queue

from service.api.app import create_app
from service.jobs.model import EVENT_TYPES, Callback, EventType, Job, JobError, JobState
from service.jobs.outbox import KEEP_S, OUTBOX
from service.jobs.queue_stats import queue_stats
from service.jobs.rq_queues import generate_queue
from service.maintenance.rq_housekeeping import clean_registries
from service.settings import Settings
from service.webhook_dispatcher.attempt import AttemptRunner
from service.webhook_dispatcher.fan_out import EVENT_OF, FanOut
from service.webhook_dispatcher.metrics import DispatcherMetrics
from service.webhooks.deliveries import CLAIM_S, DUE, MAX_LOGGED_ATTEMPTS, Delivery, key
from service.webhooks.endpoints import Endpoint
from service.webhooks.retry_policy import NextState, State
from service.webhooks.sender import Outcome, Sender
from service.webhooks.url_policy import UrlPolicy
from service.wire.video import Renderer
from service.wire.webhook import OMITTED_FIELDS
from service.wiring import Services, open_services
from tests.factories import PROMPT, attempt_due_webhooks, deliver_webhooks, make_job, make_output
from tests.webhook_receivers import Receiver, raw, status

ERROR = JobError(code="out_of_memory", message="Too large.")


@pytest.fixture
def services(valkey: str, tmp_path: Any) -> Iterator[Services]:
    opened = open_services(
        Settings(
            redis_url=valkey,
            data_dir=tmp_path / "data",
            webhook_allow=("127.0.0.0/8",),
            webhook_allow_http=True,
            webhook_retry_delays_s=(100, 1000, 10_000),
            webhook_timeout_s=20,
        )
    )
    yield opened
    opened.close()


@pytest.fixture
def runner(services: Services) -> AttemptRunner:
    return AttemptRunner(services.settings, services.webhooks, DispatcherMetrics())


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as opened:
        yield opened


def with_sender(runner: AttemptRunner, sender: Sender) -> AttemptRunner:
    return replace(runner, webhooks=replace(runner.webhooks, sender=sender))


def with_delays(runner: AttemptRunner, delays_s: tuple[float, ...]) -> AttemptRunner:
    return replace(runner, settings=runner.settings.model_copy(update={"webhook_retry_delays_s": delays_s}))


def created(services: Services, **over: Any) -> Job:
    return services.store.create(make_job(**over), generate_queue(services.redis, "demo"))


def completed(services: Services, **over: Any) -> Job:
    job = created(services, **over)
    assert services.store.start(job.id, "e1")
    assert services.store.complete(job.id, "e1", make_output(), {"sampling": 1.5}, 12.5)
    return job


def endpoint_at(
    services: Services, url: str, types: tuple[EventType, ...] = EVENT_TYPES, owner: str = "local"
) -> Endpoint:
    return services.webhooks.endpoints.create(owner, name="test", url=url, event_types=types)


def fan_out(services: Services) -> None:
    FanOut(services.webhooks, Renderer(services.settings, services.storage)).run_once()


def deliveries(services: Services, video_id: str | None = None, owner: str = "local") -> list[Delivery]:
    return services.webhooks.deliveries.list(owner, video_id=video_id, limit=100)[0]


def only(services: Services) -> Delivery:
    (delivery,) = deliveries(services)
    return delivery


def come_due(services: Services, delivery: Delivery) -> None:
    """Let the time until the next attempt pass."""
    services.redis.zadd(DUE, {delivery.id: 0})


class TestEvents:
    def test_a_completed_video_is_announced_with_a_signature_that_the_sdk_verifies(
        self, services: Services, runner: AttemptRunner, receiver: Receiver
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
        self, services: Services, runner: AttemptRunner, receiver: Receiver
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
        self, services: Services, runner: AttemptRunner, receiver: Receiver
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
        self, services: Services, runner: AttemptRunner, receiver: Receiver, started: bool
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

    def test_a_job_that_is_ended_twice_is_one_event(self, services: Services) -> None:
        endpoint_at(services, "http://127.0.0.1:1/")
        job = completed(services)
        assert services.store.complete(job.id, "e1", make_output(), {}, None)
        services.store.fail(job.id, None, ERROR)
        services.store.cancel(job.id)
        fan_out(services)
        assert len(deliveries(services)) == 1

    def test_the_event_of_a_video_that_is_deleted_at_once_is_still_delivered(
        self, services: Services, runner: AttemptRunner, receiver: Receiver
    ) -> None:
        endpoint_at(services, receiver.url)
        job = completed(services)
        assert services.store.delete(job.id)
        deliver_webhooks(services, runner)
        assert json.loads(receiver.received[0].body)["data"]["id"] == job.id

    def test_endpoints_get_the_events_they_subscribed_to_of_their_owner_only(
        self, services: Services, runner: AttemptRunner
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
        self, services: Services, runner: AttemptRunner, receiver: Receiver
    ) -> None:
        for _ in range(3):
            endpoint_at(services, receiver.url)
        completed(services)
        deliver_webhooks(services, runner)
        assert len({got.headers["webhook-id"] for got in receiver.received}) == 3
        assert len({json.loads(got.body)["id"] for got in receiver.received}) == 1

    def test_a_request_can_name_a_callback_url(
        self, services: Services, runner: AttemptRunner, receiver: Receiver
    ) -> None:
        job = completed(services, callback=Callback(url=f"{receiver.url}/mine"))
        completed(services)
        deliver_webhooks(services, runner)
        (got,) = receiver.received
        assert got.path == "/mine"
        secret = services.webhooks.endpoints.callback_secrets("local")[0]
        assert got.event(secret.value).data.id == job.id
        assert (only(services).url, only(services).endpoint_id) == (f"{receiver.url}/mine", None)

    def test_a_request_can_choose_the_events_of_its_callback(self, services: Services) -> None:
        completed(services, callback=Callback(url="http://127.0.0.1:1/", events=("video.failed",)))
        fan_out(services)
        assert deliveries(services) == []
        assert services.redis.xlen(OUTBOX) == 0

    def test_without_endpoint_and_callback_nothing_is_stored(self, services: Services) -> None:
        endpoint = endpoint_at(services, "http://127.0.0.1:1/")
        services.webhooks.endpoints.delete("local", endpoint.id)
        completed(services)
        services.store.cancel(created(services).id)
        assert services.redis.xlen(OUTBOX) == 0

    def test_without_a_dispatcher_the_outbox_drops_what_is_too_old(self, services: Services) -> None:
        endpoint_at(services, "http://127.0.0.1:1/")
        old_ms = int((time.time() - KEEP_S - 60) * 1000)
        for i in range(500):
            services.redis.xadd(OUTBOX, {"id": f'"video_{i}"'}, id=f"{old_ms}-{i + 1}")
        completed(services)
        assert services.redis.xlen(OUTBOX) < 200

    @pytest.mark.parametrize("damaged", ['"video_x"', "garbage"])
    def test_an_unreadable_entry_does_not_block_the_others(self, services: Services, damaged: str) -> None:
        """Found by the fault tests: an entry that was not even JSON ended every dispatcher, repeatedly."""
        endpoint_at(services, "http://127.0.0.1:1/")
        services.redis.xadd(OUTBOX, {"id": damaged})
        completed(services)
        fan_out(services)
        assert len(deliveries(services)) == 1


class TestRetries:
    def test_a_rejected_delivery_is_retried_on_schedule_under_the_same_webhook_id(
        self, services: Services, runner: AttemptRunner
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

    def test_every_attempt_is_signed_with_its_own_time(self, services: Services, runner: AttemptRunner) -> None:
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

    def test_after_the_last_attempt_a_delivery_has_failed(self, services: Services, runner: AttemptRunner) -> None:
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

    def test_gone_disables_the_endpoint_until_it_is_changed(self, services: Services, runner: AttemptRunner) -> None:
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
        self, services: Services, runner: AttemptRunner, receiver: Receiver
    ) -> None:
        endpoint = endpoint_at(services, receiver.url)
        with Receiver(status(410)) as gone:
            completed(services, callback=Callback(url=gone.url))
            deliver_webhooks(services, runner)
        assert sorted(d.state for d in deliveries(services)) == [State.DELIVERED, State.FAILED]
        assert services.webhooks.endpoints.get("local", endpoint.id).is_enabled

    @pytest.mark.parametrize("change", ["delete", "disable"])
    def test_a_pending_delivery_to_a_deleted_or_disabled_endpoint_ends_without_an_attempt(
        self, services: Services, runner: AttemptRunner, change: str
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
        self, services: Services, runner: AttemptRunner, receiver: Receiver
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
        self, services: Services, runner: AttemptRunner, receiver: Receiver
    ) -> None:
        """It was allowed when it was registered; since then its addresses or the settings have changed."""
        endpoint_at(services, receiver.url)
        completed(services)
        stricter = with_sender(runner, Sender(UrlPolicy(allow_http=True)))
        deliver_webhooks(services, stricter)
        assert only(services).error == "refused_url"
        assert receiver.received == []

    def test_an_attempt_at_a_slow_receiver_is_aborted_and_logged(
        self, services: Services, runner: AttemptRunner
    ) -> None:
        with Receiver(raw(b"", pause_s=30)) as receiver:
            endpoint_at(services, receiver.url)
            completed(services)
            quick = with_sender(runner, Sender(services.webhooks.url_policy, timeout_s=1.0))
            deliver_webhooks(services, quick)
            assert only(services).log[0].error == "timeout"
            assert only(services).state is State.PENDING

    def test_the_log_of_attempts_is_bounded(self, services: Services, runner: AttemptRunner) -> None:
        with Receiver(status(500)) as receiver:
            endpoint_at(services, receiver.url)
            completed(services)
            fan_out(services)
            patient = with_delays(runner, (0,) * 100)
            for number in range(MAX_LOGGED_ATTEMPTS + 3):
                patient.run(only(services).id, number)
            assert len(receiver.received) == MAX_LOGGED_ATTEMPTS + 3
            assert len(only(services).log) == MAX_LOGGED_ATTEMPTS


class TestRotation:
    def test_a_rotation_signs_with_both_secrets_or_with_the_new_one_only(
        self, services: Services, runner: AttemptRunner, receiver: Receiver
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

    def test_a_retry_is_signed_with_the_secrets_of_that_time(self, services: Services, runner: AttemptRunner) -> None:
        with Receiver(status(500), status(200)) as receiver:
            endpoint = endpoint_at(services, receiver.url)
            completed(services)
            deliver_webhooks(services, runner)
            fresh = services.webhooks.endpoints.rotate("local", endpoint.id, keep_old=False)
            come_due(services, only(services))
            deliver_webhooks(services, runner)
            assert receiver.received[1].event(fresh.secrets[0].value).type == "video.completed"

    def test_the_callback_secret_rotates_the_same_way(
        self, services: Services, runner: AttemptRunner, receiver: Receiver
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


class TestRedelivery:
    def test_a_delivered_webhook_can_be_delivered_again(
        self, services: Services, runner: AttemptRunner, receiver: Receiver
    ) -> None:
        endpoint_at(services, receiver.url)
        completed(services)
        deliver_webhooks(services, runner)
        again = services.webhooks.deliveries.redeliver("local", only(services).id)
        assert (again.state, again.ended_at) == (State.PENDING, None)
        deliver_webhooks(services, runner)
        assert only(services).state is State.DELIVERED
        first, second = receiver.received
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert first.body == second.body

    def test_a_redelivery_has_the_whole_retry_schedule_ahead(self, services: Services, runner: AttemptRunner) -> None:
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

    def test_a_redelivery_does_not_touch_an_attempt_in_progress(self, services: Services) -> None:
        endpoint_at(services, "http://127.0.0.1:1/")
        completed(services)
        fan_out(services)
        store = services.webhooks.deliveries
        assert store.start_attempt(only(services), "http://127.0.0.1:1/", timeout_s=20, per_host_limit=1)
        taken = only(services)
        assert store.redeliver("local", taken.id) == taken


class TestNothingIsLost:
    def test_when_a_dispatcher_dies_before_it_has_written_the_deliveries(
        self, services: Services, receiver: Receiver
    ) -> None:
        endpoint_at(services, receiver.url)
        job = completed(services)
        dying = replace(services.webhooks, outbox=DiesAtSettling(services.redis))
        with pytest.raises(KeyboardInterrupt):
            fan_out(replace(services, webhooks=dying))
        assert deliveries(services) == []
        deliver_webhooks(services)
        assert json.loads(receiver.received[0].body)["data"]["id"] == job.id

    def test_when_a_dispatcher_dies_between_the_outbox_and_the_claim(
        self, services: Services, receiver: Receiver
    ) -> None:
        endpoint_at(services, receiver.url)
        completed(services)
        fan_out(services)  # and no further
        assert services.redis.xlen(OUTBOX) == 0
        deliver_webhooks(services)
        assert len(receiver.received) == 1

    def test_when_a_dispatcher_dies_between_the_claim_and_the_attempt(
        self, services: Services, receiver: Receiver
    ) -> None:
        endpoint_at(services, receiver.url)
        completed(services)
        fan_out(services)
        store = services.webhooks.deliveries
        now = time.time()
        assert len(store.claim(10, now=now)) == 1  # and no attempt follows
        assert store.claim(10, now=now + CLAIM_S - 1) == []
        assert store.claim(10, now=now + CLAIM_S + 1) == [(only(services).id, 0)]
        come_due(services, only(services))
        deliver_webhooks(services)
        assert len(receiver.received) == 1

    def test_when_a_dispatcher_dies_during_an_attempt(self, services: Services, receiver: Receiver) -> None:
        endpoint_at(services, receiver.url)
        completed(services)
        fan_out(services)
        store, waiting = services.webhooks.deliveries, only(services)
        assert store.start_attempt(waiting, receiver.url, timeout_s=20, per_host_limit=4)  # and it never finishes
        come_due(services, waiting)
        deliver_webhooks(services)
        assert receiver.received == [], "the attempt does not count as lost yet"
        assert store.start_attempt(waiting, receiver.url, timeout_s=20, per_host_limit=4) is False
        services.redis.hset(key(waiting.id), "taken_until", json.dumps(time.time() - 1))
        come_due(services, waiting)
        deliver_webhooks(services)
        assert (len(receiver.received), only(services).attempts) == (1, 2)

    def test_an_attempt_moves_the_due_time_to_when_it_counts_as_lost(
        self, services: Services, receiver: Receiver
    ) -> None:
        endpoint_at(services, receiver.url)
        completed(services)
        fan_out(services)
        store, waiting = services.webhooks.deliveries, only(services)
        assert store.start_attempt(waiting, receiver.url, timeout_s=20, per_host_limit=4)
        lost_at = only(services).taken_until
        assert lost_at is not None
        assert lost_at > time.time() + 20
        assert services.redis.zscore(DUE, waiting.id) == pytest.approx(lost_at)

    def test_a_claim_that_has_expired_does_not_bring_a_later_attempt_forward(
        self, services: Services, runner: AttemptRunner
    ) -> None:
        """A dispatcher is frozen after a claim; meanwhile another makes the attempt, and a retry is scheduled."""
        with Receiver(status(500)) as receiver:
            endpoint_at(services, receiver.url)
            completed(services)
            fan_out(services)
            (expired,) = services.webhooks.deliveries.claim(1)
            come_due(services, only(services))
            deliver_webhooks(services)
            runner.run(*expired)
            assert (len(receiver.received), only(services).attempts) == (1, 1)

    def test_deliveries_that_version_0_1_had_put_into_its_rq_queue_are_made(
        self, services: Services, receiver: Receiver
    ) -> None:
        """0.1 claimed a delivery for two minutes and queued an RQ job for it, which nothing runs any more."""
        endpoint_at(services, receiver.url)
        completed(services)
        fan_out(services)
        (claimed,) = services.webhooks.deliveries.claim(1)
        queue = Queue("webhooks", connection=services.redis, serializer="json")
        queue.enqueue_call("service.tasks.deliver", args=claimed, result_ttl=0, failure_ttl=600)
        deliver_webhooks(services)
        assert receiver.received == []
        come_due(services, only(services))
        deliver_webhooks(services)
        assert (len(receiver.received), only(services).state) == (1, State.DELIVERED)
        clean_registries(services.redis)
        stats = queue_stats(services.redis, services.store, "demo")
        queue.delete(delete_jobs=True)
        assert queue_stats(services.redis, services.store, "demo") == stats, "what 0.1 left behind changes nothing"

    def test_a_delivery_whose_attempts_are_all_lost_fails(
        self, services: Services, runner: AttemptRunner, receiver: Receiver
    ) -> None:
        endpoint_at(services, receiver.url)
        completed(services)
        fan_out(services)
        store = services.webhooks.deliveries
        for _ in range(len(runner.settings.webhook_retry_delays_s) + 1):
            assert store.start_attempt(only(services), receiver.url, timeout_s=-60, per_host_limit=4)
        runner.run(only(services).id, only(services).attempts)
        ended = only(services)
        assert (ended.state, ended.error, receiver.received) == (State.FAILED, "attempts_lost", [])
        assert services.redis.zcard(DUE) == 0

    def test_the_schedule_survives_a_restart(
        self, services: Services, runner: AttemptRunner, settings: Settings
    ) -> None:
        with Receiver(status(500), status(200)) as receiver:
            endpoint_at(services, receiver.url)
            completed(services)
            deliver_webhooks(services, runner)
            come_due(services, only(services))
            fresh = open_services(services.settings)
            deliver_webhooks(fresh)
            fresh.close()
            assert only(services).state is State.DELIVERED

    def test_of_many_dispatchers_one_makes_the_deliveries(self, services: Services) -> None:
        endpoint_at(services, "http://127.0.0.1:1/")
        jobs = [completed(services) for _ in range(10)]
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda _: fan_out(services), range(6)))
        made = deliveries(services)
        assert sorted(d.video_id for d in made) == sorted(job.id for job in jobs)

    def test_of_many_dispatchers_one_makes_the_attempt(
        self, services: Services, runner: AttemptRunner, receiver: Receiver
    ) -> None:
        endpoint_at(services, receiver.url)
        completed(services)
        fan_out(services)
        delivery_id = only(services).id
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: runner.run(delivery_id, 0), range(8)))
        assert (len(receiver.received), only(services).attempts) == (1, 1)

    def test_the_late_outcome_of_a_lost_attempt_changes_nothing(self, services: Services) -> None:
        endpoint_at(services, "http://127.0.0.1:1/")
        completed(services)
        fan_out(services)
        store, first = services.webhooks.deliveries, only(services)
        assert store.start_attempt(first, "http://127.0.0.1:1/", timeout_s=-60, per_host_limit=4)
        second = only(services)
        assert store.start_attempt(second, "http://127.0.0.1:1/", timeout_s=20, per_host_limit=4)
        before = only(services)
        assert not store.finish_attempt(
            first, "http://127.0.0.1:1/", Outcome(200, None, 0.1), NextState(State.DELIVERED)
        )
        assert only(services) == before
        assert store.finish_attempt(second, "http://127.0.0.1:1/", Outcome(200, None, 0.1), NextState(State.DELIVERED))
        assert only(services).state is State.DELIVERED


class TestLoad:
    def test_a_slow_host_gets_no_more_attempts_than_its_limit(self, services: Services, runner: AttemptRunner) -> None:
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
        self, services: Services
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

    def test_when_an_attempt_ends_the_delivery_that_waited_longest_for_the_host_is_due(
        self, services: Services
    ) -> None:
        url = "http://127.0.0.1:1/"
        endpoint_at(services, url)
        for _ in range(3):
            completed(services)
        fan_out(services)
        store = services.webhooks.deliveries
        third, second, first = deliveries(services)
        store.claim(3)
        assert store.start_attempt(first, url, timeout_s=20, per_host_limit=1)
        for waiting in (second, third, second):
            assert not store.start_attempt(waiting, url, timeout_s=20, per_host_limit=1)
        assert store.claim(3) == []
        assert store.finish_attempt(first, url, Outcome(200, None, 0.1), NextState(State.DELIVERED))
        assert store.claim(3) == [(second.id, 0)]

    def test_a_retry_is_not_brought_forward_when_the_host_has_room_again(self, services: Services) -> None:
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
        assert store.claim(3) == []

    def test_an_owners_deliveries_are_bounded_and_pending_ones_never_dropped(
        self, services: Services, monkeypatch: pytest.MonkeyPatch
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

    def test_records_expire(self, services: Services) -> None:
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


class DiesAtSettling:
    def __init__(self, redis: Any) -> None:
        from service.jobs.outbox import Outbox

        self._outbox = Outbox(redis)

    def read(self, limit: int) -> Any:
        return self._outbox.read(limit)

    def settle(self, *_: Any) -> bool:
        raise KeyboardInterrupt


class TestMetrics:
    def test_pending_deliveries_attempts_and_results_are_counted(
        self, services: Services, runner: AttemptRunner
    ) -> None:
        def waits() -> tuple[float, float]:
            with TestClient(create_app(services)) as http:
                text = http.get("/metrics").text
            outbox, pending = (
                text.partition(f"\nivmix_webhook_{name} ")[2].split()[0] for name in ("outbox", "pending")
            )
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


def test_every_terminal_state_has_an_event() -> None:
    assert set(EVENT_OF) == {state for state in JobState if state.is_terminal}
