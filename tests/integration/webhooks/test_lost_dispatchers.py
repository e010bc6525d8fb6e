"""No event is lost or delivered twice when dispatchers die, freeze, restart or compete."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from rq import Queue

from service.jobs.outbox import OUTBOX
from service.jobs.queue_and_waiting_time import queue_stats
from service.maintenance.rq_housekeeping import clean_registries
from service.webhook_dispatcher.attempt import AttemptRunner
from service.webhooks.deliveries import CLAIM_S, DUE, key
from service.webhooks.retry_policy import NextState, State
from service.webhooks.sender import Outcome
from service.wiring import Services, open_services
from tests.factories import deliver_webhooks
from tests.webhook_receivers import Receiver, status
from tests.webhook_steps import come_due, completed, deliveries, endpoint_at, fan_out, only


def test_when_a_dispatcher_dies_before_it_has_written_the_deliveries(services: Services, receiver: Receiver) -> None:
    endpoint_at(services, receiver.url)
    job = completed(services)
    dying = replace(services.webhooks, outbox=DiesAtSettling(services.redis))
    with pytest.raises(KeyboardInterrupt):
        fan_out(replace(services, webhooks=dying))
    assert deliveries(services) == []
    deliver_webhooks(services)
    assert json.loads(receiver.received[0].body)["data"]["id"] == job.id


def test_when_a_dispatcher_dies_between_the_outbox_and_the_claim(services: Services, receiver: Receiver) -> None:
    endpoint_at(services, receiver.url)
    completed(services)
    fan_out(services)  # and no further
    assert services.redis.xlen(OUTBOX) == 0
    deliver_webhooks(services)
    assert len(receiver.received) == 1


def test_when_a_dispatcher_dies_between_the_claim_and_the_attempt(services: Services, receiver: Receiver) -> None:
    endpoint_at(services, receiver.url)
    completed(services)
    fan_out(services)
    store = services.webhooks.deliveries
    now = time.time()
    assert len(store.claim(10, now=now)) == 1  # and no attempt follows
    assert store.claim(10, now=now + CLAIM_S - 1) == []
    assert store.claim(10, now=now + CLAIM_S + 1) == [(only(services).id, 0, "local")]
    come_due(services, only(services))
    deliver_webhooks(services)
    assert len(receiver.received) == 1


def test_when_a_dispatcher_dies_during_an_attempt(services: Services, receiver: Receiver) -> None:
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


def test_an_attempt_moves_the_due_time_to_when_it_counts_as_lost(services: Services, receiver: Receiver) -> None:
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
    services: Services, runner: AttemptRunner
) -> None:
    """A dispatcher is frozen after a claim; meanwhile another makes the attempt, and a retry is scheduled."""
    with Receiver(status(500)) as receiver:
        endpoint_at(services, receiver.url)
        completed(services)
        fan_out(services)
        (expired,) = services.webhooks.deliveries.claim(1)
        come_due(services, only(services))
        deliver_webhooks(services)
        runner.run(expired.delivery_id, expired.attempts_made)
        assert (len(receiver.received), only(services).attempts) == (1, 1)


def test_deliveries_that_version_0_1_had_put_into_its_rq_queue_are_made(services: Services, receiver: Receiver) -> None:
    """0.1 claimed a delivery for two minutes and queued an RQ job for it, which nothing runs any more."""
    endpoint_at(services, receiver.url)
    completed(services)
    fan_out(services)
    (claimed,) = services.webhooks.deliveries.claim(1)
    queue = Queue("webhooks", connection=services.redis, serializer="json")
    queue.enqueue_call("service.tasks.deliver", args=claimed[:2], result_ttl=0, failure_ttl=600)
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
    services: Services, runner: AttemptRunner, receiver: Receiver
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


def test_the_schedule_survives_a_restart(services: Services, runner: AttemptRunner) -> None:
    with Receiver(status(500), status(200)) as receiver:
        endpoint_at(services, receiver.url)
        completed(services)
        deliver_webhooks(services, runner)
        come_due(services, only(services))
        fresh = open_services(services.settings)
        deliver_webhooks(fresh)
        fresh.close()
        assert only(services).state is State.DELIVERED


def test_of_many_dispatchers_one_makes_the_deliveries(services: Services) -> None:
    endpoint_at(services, "http://127.0.0.1:1/")
    jobs = [completed(services) for _ in range(10)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: fan_out(services), range(6)))
    made = deliveries(services)
    assert sorted(d.video_id for d in made) == sorted(job.id for job in jobs)


def test_of_many_dispatchers_one_makes_the_attempt(
    services: Services, runner: AttemptRunner, receiver: Receiver
) -> None:
    endpoint_at(services, receiver.url)
    completed(services)
    fan_out(services)
    delivery_id = only(services).id
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: runner.run(delivery_id, 0), range(8)))
    assert (len(receiver.received), only(services).attempts) == (1, 1)


def test_the_late_outcome_of_a_lost_attempt_changes_nothing(services: Services) -> None:
    endpoint_at(services, "http://127.0.0.1:1/")
    completed(services)
    fan_out(services)
    store, first = services.webhooks.deliveries, only(services)
    assert store.start_attempt(first, "http://127.0.0.1:1/", timeout_s=-60, per_host_limit=4)
    second = only(services)
    assert store.start_attempt(second, "http://127.0.0.1:1/", timeout_s=20, per_host_limit=4)
    before = only(services)
    assert not store.finish_attempt(first, "http://127.0.0.1:1/", Outcome(200, None, 0.1), NextState(State.DELIVERED))
    assert only(services) == before
    assert store.finish_attempt(second, "http://127.0.0.1:1/", Outcome(200, None, 0.1), NextState(State.DELIVERED))
    assert only(services).state is State.DELIVERED


class DiesAtSettling:
    def __init__(self, redis: Any) -> None:
        from service.jobs.outbox import Outbox

        self._outbox = Outbox(redis)

    def read(self, limit: int) -> Any:
        return self._outbox.read(limit)

    def settle(self, *_: Any, **_named: Any) -> bool:
        raise KeyboardInterrupt
