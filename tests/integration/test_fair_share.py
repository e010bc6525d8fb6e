"""Waiting jobs of different owners take turns, whatever is created, taken, cancelled or put back in between."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rq import Queue

from service.jobs.keys import job_key
from service.jobs.model import Job, Priority
from service.jobs.rq_queues import generate_queue
from service.jobs.store import JobStore
from service.wiring import Services
from tests.factories import make_job


@pytest.fixture
def queue(services: Services) -> Queue:
    return generate_queue(services.redis, "demo")


@dataclass
class Waiting:
    """The real store and queue, with jobs called a1, a2, b1 ... in the order of their creation."""

    services: Services
    queue: Queue
    names: dict[str, str] = field(default_factory=dict)
    count: Counter[str] = field(default_factory=Counter)

    @property
    def store(self) -> JobStore:
        return self.services.store

    def create(self, owner: str, priority: Priority = Priority.NORMAL) -> Job:
        self.count[owner] += 1
        job = self.store.create(make_job(owner=owner, priority=priority), self.queue)
        self.names[job.id] = f"{owner}{self.count[owner]}"
        return job

    def add(self, names: str) -> None:
        """add("a a b low:a") creates jobs of these owners."""
        for name in names.split():
            priority, _, owner = name.rpartition(":")
            self.create(owner, Priority(priority or "normal"))

    def take(self) -> str | None:
        """Take the first job out of the queue, as RQ does."""
        taken = self.services.redis.lmove(self.queue.key, self.queue.intermediate_queue_key, "LEFT", "RIGHT")
        return taken.decode() if isinstance(taken, bytes) else None

    def start(self) -> Job:
        job_id = self.take()
        assert job_id is not None
        job = self.store.start(job_id, "e")
        assert job is not None
        return job

    def cancel(self, name: str) -> None:
        self.store.cancel(next(job_id for job_id, known in self.names.items() if known == name))

    @property
    def order(self) -> str:
        return " ".join(self.names[job_id] for job_id in self.queue.job_ids)


@pytest.fixture
def waiting(services: Services, queue: Queue) -> Waiting:
    return Waiting(services, queue)


def test_one_owner_is_served_in_order(waiting: Waiting) -> None:
    waiting.add("a a a low:a a")
    assert waiting.order == "a1 a2 a3 a5 a4"


def test_a_flood_delays_the_first_job_of_another_owner_by_one(waiting: Waiting) -> None:
    waiting.add("a " * 100 + "b b c")
    assert waiting.order.startswith("a1 b1 c1 a2 b2 a3 a4")


def test_the_last_owner_is_not_served_again_before_the_others(waiting: Waiting) -> None:
    waiting.add("a b b b a a")
    assert waiting.order == "a1 b1 a2 b2 a3 b3"
    waiting.start()
    waiting.add("a a")
    assert waiting.order == "b1 a2 b2 a3 b3 a4 a5"


def test_low_priority_takes_turns_behind_normal_priority(waiting: Waiting) -> None:
    waiting.add("low:a low:a low:b a a b")
    assert waiting.order == "a3 b2 a4 a1 b1 a2"


@pytest.mark.parametrize(("cancelled", "order"), [("a1", "a2 b1 a3 b2 b3"), ("b2", "a1 b1 a2 b3 a3")])
def test_the_jobs_behind_a_cancelled_one_move_up_a_turn(waiting: Waiting, cancelled: str, order: str) -> None:
    waiting.add("a b a b a b")
    waiting.cancel(cancelled)
    assert waiting.order == order


def test_a_job_that_waited_too_long_leaves_the_queue(waiting: Waiting) -> None:
    waiting.add("a b a b")
    job_id = waiting.queue.job_ids[0]
    waiting.services.redis.hset(job_key(job_id), "start_by", json.dumps(time.time() - 1))
    job = waiting.store.get(job_id)
    assert job is not None
    assert waiting.store.fail_if_overdue(job)
    assert waiting.order == "a2 b1 b2"


def test_a_job_that_is_put_back_goes_first_and_costs_its_owner_no_turn(waiting: Waiting) -> None:
    waiting.add("a a b a")
    running = waiting.start()
    waiting.store.requeue(running, "e")
    assert waiting.order == "a1 b1 a2 a3"
    assert waiting.take() == running.id
    job = waiting.store.get(running.id)
    assert job is not None
    assert waiting.store.send_again(job)
    waiting.add("b c")
    assert waiting.order == "a1 b1 a2 c1 b2 a3"


def test_a_damaged_record_does_not_stop_the_queue(waiting: Waiting) -> None:
    waiting.add("a a")
    redis, (first, second) = waiting.services.redis, waiting.queue.job_ids
    redis.hset(job_key(first), "owner", b"\xff{")
    redis.delete(job_key(second))
    redis.set(job_key(second), "not a hash")
    waiting.add("b b")
    assert sorted(waiting.order.split()) == ["a1", "a2", "b1", "b2"]


def test_position_and_estimate_follow_the_turns(waiting: Waiting) -> None:
    waiting.add("a " * 20)
    mine = waiting.create("b")
    assert waiting.store.get_with_position(mine.id) == (mine, 1)
    assert waiting.store.jobs_ahead("demo", ("a", "b", "c")) == [21, 3, 2]


OWNERS = st.sampled_from("abc")
STEPS = st.one_of(
    st.tuples(st.just("create"), OWNERS, st.sampled_from(Priority)),
    st.tuples(st.sampled_from(["start", "requeue", "lose"])),
    st.tuples(st.just("cancel"), st.integers(0, 50)),
)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=10, max_size=40))
def test_turns_hold_after_any_history(services: Services, queue: Queue, steps: list[tuple[object, ...]]) -> None:
    redis: Any = services.redis
    redis.flushall()
    waiting = Waiting(services, queue)
    for step in steps:
        apply(waiting, step)
        check(waiting)


def apply(waiting: Waiting, step: tuple[object, ...]) -> None:
    match step:
        case ("create", str(owner), Priority() as priority):
            waiting.create(owner, priority)
        case ("cancel", int(index)) if ids := waiting.queue.job_ids:
            waiting.store.cancel(ids[index % len(ids)])
            assert len(waiting.queue.job_ids) == len(ids) - 1
        case ("start",) if waiting.queue.job_ids:
            waiting.start()
        case ("requeue",) if waiting.queue.job_ids:
            job = waiting.start()
            assert waiting.store.requeue(job, "e")
            assert waiting.queue.job_ids[0] == job.id
        case ("lose",) if job_id := waiting.take():
            job = waiting.store.get(job_id)
            assert job is not None
            assert waiting.store.send_again(job)
            assert waiting.queue.job_ids[0] == job.id
        case _:
            pass


def check(waiting: Waiting) -> None:
    jobs = [job for job_id in waiting.queue.job_ids if (job := waiting.store.get(job_id)) and not job.returned]
    priorities = [job.priority for job in jobs]
    assert priorities == sorted(priorities, key=[Priority.NORMAL, Priority.LOW].index)
    for priority in Priority:
        owners = [job.owner for job in jobs if job.priority is priority]
        for owner in set(owners):
            places = [-1, *(i for i, other in enumerate(owners) if other == owner)]
            for before, here in pairwise(places):
                others = Counter(owners[before + 1 : here])
                assert not others or max(others.values()) == 1, f"{owners}: {owner} is overtaken twice"
            ids = [job.id for job in jobs if job.priority is priority and job.owner == owner]
            assert ids == sorted(ids), "jobs of one owner stay in order"
