"""Webhook capacity is shared among owners: silent receivers of one must not delay the webhooks of another."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from redis import Redis

from service.settings import Settings
from service.webhooks.deliveries import CLAIM_S, DUE, QUEUES, Claim, DeliveryStore, new_delivery
from service.wiring import Services
from tests.dispatching import dispatching
from tests.processes import wait_for
from tests.webhook_receivers import Receiver, status

URL = "http://127.0.0.1:1/"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    changes = {
        "webhook_allow": ("127.0.0.0/8",),
        "webhook_allow_http": True,
        "webhook_timeout_s": 30.0,  # no attempt at a silent receiver ends during a test
        "webhook_concurrency": 16,
        "webhook_retry_delays_s": (60.0,),
    }
    return settings.model_copy(update=changes)


@pytest.fixture
def store(services: Services) -> DeliveryStore:
    return services.webhooks.deliveries


class SilentReceivers:
    """Twelve receivers that answer nothing until `end` is set."""

    def __init__(self, stack: ExitStack) -> None:
        self.end = threading.Event()
        self.receivers = [stack.enter_context(Receiver(self._wait)) for _ in range(12)]

    def _wait(self, handler: BaseHTTPRequestHandler) -> None:
        self.end.wait(60)
        status(204)(handler)


@pytest.fixture
def silent() -> Iterator[SilentReceivers]:
    with ExitStack() as stack:
        yield SilentReceivers(stack)


def put(store: DeliveryStore, owner: str, count: int = 1, **over: Any) -> None:
    for _ in range(count):
        fields = {"url": URL, "event_id": "evt_1", "event_type": "video.failed", "video_id": "video_1", "body": "{}"}
        store.create(new_delivery(owner=owner, **fields | over))


def owners(claims: list[Claim]) -> Counter[str]:
    return Counter(claim.owner for claim in claims)


class TestClaims:
    def test_one_owner_leaves_room_for_the_others(self, store: DeliveryStore) -> None:
        put(store, "a", 40)
        first = owners(store.claim(16))
        assert 0 < first["a"] <= 8
        assert store.claim(16, in_progress=first) == []
        for owner in "bcd":
            put(store, owner, 40)
            first += owners(store.claim(16, in_progress=first))
            assert first[owner] >= 1
        assert first.total() <= 16

    def test_owners_with_much_to_send_share_evenly(self, store: DeliveryStore) -> None:
        for owner in "abc":
            put(store, owner, 40)
        counts = owners(store.claim(16))
        assert max(counts.values()) - min(counts.values()) <= 1

    def test_with_one_attempt_at_a_time_owners_take_turns(self, store: DeliveryStore) -> None:
        put(store, "a", 5)
        put(store, "b", 5)
        turns = [store.claim(1)[0].owner for _ in range(6)]
        assert turns in (list("ababab"), list("bababa"))

    def test_within_an_owner_the_oldest_is_claimed_first(self, store: DeliveryStore) -> None:
        put(store, "a", 5)
        created = [found.id for found in store.list("a")[0]][::-1]
        assert [store.claim(1)[0].delivery_id for _ in range(5)] == created

    def test_many_deliveries_of_one_owner_do_not_hide_those_of_another(
        self, store: DeliveryStore, services: Services
    ) -> None:
        put(store, "a", 300)
        put(store, "b")
        in_progress = {"a": 16 - 2}  # of 16: nothing more for a
        assert [claim.owner for claim in store.claim(16, in_progress=in_progress)] == ["b"]

    def test_a_dispatcher_that_dies_loses_neither_queued_nor_claimed_ones(self, store: DeliveryStore) -> None:
        put(store, "a", 9)
        now = time.time()
        claimed = store.claim(6, now=now)
        assert len(claimed) < 9
        later: set[str] = set()
        for _ in range(9):
            later |= {claim.delivery_id for claim in store.claim(6, now=now + CLAIM_S + 1)}
        assert later == {found.id for found in store.list("a")[0]}

    def test_an_ended_or_expired_delivery_leaves_the_queue(self, store: DeliveryStore, services: Services) -> None:
        redis: Redis = services.redis
        put(store, "a", 4)
        (first,) = store.claim(1)
        waiting = [found for found in store.list("a")[0] if found.id != first.delivery_id]
        assert store.fail(waiting[0], "test")
        redis.delete(f"ivm:webhook:delivery:{waiting[1].id}")
        assert [claim.delivery_id for claim in store.claim(1)] == [waiting[2].id]
        assert store.claim(1) == []
        assert redis.zcard(QUEUES) == 0
        assert redis.zscore(DUE, waiting[0].id) is None

    def test_a_slow_path_of_one_owner_does_not_use_up_the_host_for_another(self, store: DeliveryStore) -> None:
        put(store, "a", 3)
        put(store, "b")
        for delivery, expected in zip(store.list("a")[0], (True, True, False), strict=True):
            assert store.start_attempt(delivery, URL, timeout_s=20, per_host_limit=2) is expected
        (other,) = store.list("b")[0]
        assert store.start_attempt(other, URL, timeout_s=20, per_host_limit=2)

    @pytest.mark.parametrize("spelling", ["http://LOCALHOST/", "http://localhost./a", "http://localhost:80/?q"])
    def test_other_spellings_of_a_host_are_the_same_host(self, store: DeliveryStore, spelling: str) -> None:
        put(store, "a", 2)
        first, second = store.list("a")[0]
        assert store.start_attempt(first, "http://localhost/", timeout_s=20, per_host_limit=1)
        assert not store.start_attempt(second, spelling, timeout_s=20, per_host_limit=1)


def delay_of_the_other(services: Services, quick: Receiver) -> float:
    """Seconds until another owner's webhook arrives."""
    before, began = len(quick.received), time.monotonic()
    put(services.webhooks.deliveries, "other", url=f"{quick.url}/")
    quick.wait(before + 1)
    return time.monotonic() - began


@pytest.mark.parametrize("tenants", [1, 4])
def test_silent_receivers_do_not_delay_the_webhook_of_another_owner(
    services: Services, silent: SilentReceivers, tenants: int
) -> None:
    """Both callbacks and endpoints; another receiver on another host, and one on the same host."""
    store = services.webhooks.deliveries
    with Receiver() as quick, dispatching(services):
        for tenant in range(tenants):
            for receiver in silent.receivers:
                endpoint = services.webhooks.endpoints.create(
                    f"flood{tenant}", name="x", url=receiver.url, event_types=("video.failed",)
                )
                put(store, endpoint.owner, 3, url=None, endpoint_id=endpoint.id)
                put(store, endpoint.owner, 3, url=receiver.url)
        wait_for(lambda: sum(len(receiver.received) for receiver in silent.receivers) >= 5 or None)
        try:
            assert delay_of_the_other(services, quick) < 15, "it waited for the end of an attempt"
        finally:
            silent.end.set()
