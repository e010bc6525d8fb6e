"""Orphaned jobs are requeued, whatever the reason; jobs with a worker or in a queue are left alone."""

from __future__ import annotations

import json
import time

import pytest
from redis.exceptions import OutOfMemoryError, RedisError
from rq import Queue

from service.jobs.keys import ACTIVE, ENDED, job_key, lease_key
from service.jobs.model import Job, JobState
from service.maintenance.lost_job_reaper import LostJobReaper
from service.maintenance.retention import Retention
from service.wiring import Services
from tests.factories import make_job, make_output


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reaper(services: Services, clock: Clock) -> LostJobReaper:
    retention = Retention(services.redis, services.store, services.storage, retention_s=60, tidy_after_s=10)
    return LostJobReaper(services.redis, services.store, retention, grace_s=5, max_attempts=3, clock=clock)


@pytest.fixture
def job(services: Services, queue: Queue) -> Job:
    return services.store.create(make_job(), queue)


def run_twice(reaper: LostJobReaper, clock: Clock, seconds: float = 5) -> None:
    reaper.run_once()
    clock.now += seconds
    reaper.run_once()


def now(services: Services, job: Job) -> Job:
    found = services.store.get(job.id)
    assert found is not None
    return found


def taken(services: Services, queue: Queue, job: Job, execution: str = "e1") -> Job:
    """Take a job as a worker does."""
    queue.remove(job.id)
    running = services.store.start(job.id, execution)
    assert running is not None
    return running


def test_waiting_and_running_jobs_are_left_alone(
    services: Services, queue: Queue, reaper: LostJobReaper, clock: Clock
) -> None:
    waiting, running = (services.store.create(make_job(), queue) for _ in range(2))
    taken(services, queue, running)
    before = [now(services, job) for job in (waiting, running)]
    run_twice(reaper, clock, 3600)
    assert [now(services, job) for job in (waiting, running)] == before
    assert queue.job_ids == [waiting.id]


def test_job_with_an_expired_lease_returns_to_the_front(
    services: Services, queue: Queue, reaper: LostJobReaper, clock: Clock, job: Job
) -> None:
    other = services.store.create(make_job(), queue)
    taken(services, queue, job)
    services.redis.delete(lease_key(job.id))
    run_twice(reaper, clock)
    assert (now(services, job).state, now(services, job).attempt) == (JobState.QUEUED, 1)
    assert queue.job_ids == [job.id, other.id]


def test_lease_that_is_missing_for_a_moment_costs_nothing(
    services: Services, queue: Queue, reaper: LostJobReaper, clock: Clock, job: Job
) -> None:
    taken(services, queue, job)
    services.redis.delete(lease_key(job.id))
    run_twice(reaper, clock, 4.9)
    services.store.renew_lease(job.id, "e1")
    clock.now += 1
    reaper.run_once()
    services.redis.delete(lease_key(job.id))
    run_twice(reaper, clock, 4.9)
    assert now(services, job).state is JobState.RUNNING


def test_worker_that_renews_its_lease_at_the_last_moment_keeps_its_job(
    services: Services, queue: Queue, reaper: LostJobReaper, clock: Clock, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the reaper's check and its requeue."""
    taken(services, queue, job)
    services.redis.delete(lease_key(job.id))
    reaper.run_once()
    clock.now += 5
    get = services.store.get

    def beat_and_get(job_id: str) -> Job | None:
        services.store.renew_lease(job_id, "e1")
        return get(job_id)

    monkeypatch.setattr(services.store, "get", beat_and_get)
    reaper.run_once()
    assert now(services, job).state is JobState.RUNNING


def test_after_an_outage_the_grace_period_starts_again(
    services: Services, queue: Queue, reaper: LostJobReaper, clock: Clock, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken(services, queue, job)
    services.redis.delete(lease_key(job.id))
    reaper.run_once()
    with monkeypatch.context() as away:
        away.setattr(reaper, "_queued_ids", lambda: (_ for _ in ()).throw(RedisError()))
        with pytest.raises(RedisError):
            reaper.run_once()
    clock.now += 100
    reaper.run_once()
    assert now(services, job).state is JobState.RUNNING


def test_after_redis_was_full_the_grace_period_starts_again(
    services: Services, queue: Queue, reaper: LostJobReaper, clock: Clock, job: Job
) -> None:
    """It could be read, so the leases were seen expiring; no worker could renew one."""
    taken(services, queue, job)
    services.redis.delete(lease_key(job.id))
    reaper.run_once()
    services.redis.config_set("maxmemory", 1)
    try:
        clock.now += 100
        with pytest.raises(OutOfMemoryError):
            reaper.run_once()
    finally:
        services.redis.config_set("maxmemory", 0)
    reaper.run_once()
    assert now(services, job).state is JobState.RUNNING


def test_the_local_clock_does_not_matter(
    services: Services, queue: Queue, reaper: LostJobReaper, clock: Clock, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leases are measured by Redis: a maintenance process whose clock is an hour ahead requeues no job."""
    taken(services, queue, job)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    run_twice(reaper, clock)
    assert now(services, job).state is JobState.RUNNING


def test_job_that_loses_its_worker_too_often_fails(
    services: Services, queue: Queue, reaper: LostJobReaper, clock: Clock, job: Job
) -> None:
    for attempt in (1, 2, 3):
        assert now(services, job).state is JobState.QUEUED
        taken(services, queue, job, f"e{attempt}")
        services.redis.delete(lease_key(job.id))
        run_twice(reaper, clock)
    error = now(services, job).error
    assert error is not None
    assert (now(services, job).state, error.code) == (JobState.FAILED, "worker_lost")


def test_lost_job_with_a_requested_cancellation_is_cancelled(
    services: Services, queue: Queue, reaper: LostJobReaper, clock: Clock, job: Job
) -> None:
    taken(services, queue, job)
    services.store.cancel(job.id)
    services.redis.delete(lease_key(job.id))
    run_twice(reaper, clock)
    assert now(services, job).state is JobState.CANCELLED
    assert queue.job_ids == []


def test_waiting_job_that_is_in_no_queue_is_sent_again(
    services: Services, queue: Queue, reaper: LostJobReaper, clock: Clock, job: Job
) -> None:
    services.redis.delete(queue.key, f"rq:job:{job.id}")
    run_twice(reaper, clock)
    assert queue.job_ids == [job.id]
    assert queue.fetch_job(job.id) is not None
    run_twice(reaper, clock)
    assert queue.job_ids == [job.id]


def test_job_whose_worker_was_killed_between_taking_and_starting_is_sent_again(
    services: Services, queue: Queue, reaper: LostJobReaper, clock: Clock, job: Job
) -> None:
    assert services.redis.lmove(queue.key, queue.intermediate_queue_key) == job.id.encode()
    run_twice(reaper, clock)
    assert queue.job_ids == [job.id]
    assert services.redis.llen(queue.intermediate_queue_key) == 0


def test_damaged_record_fails_and_blocks_no_other(
    services: Services, queue: Queue, reaper: LostJobReaper, clock: Clock, job: Job
) -> None:
    lost = services.store.create(make_job(), queue)
    for each in (job, lost):
        taken(services, queue, each)
    services.redis.hset(job_key(job.id), "generation", "garbage")
    services.redis.delete(lease_key(job.id), lease_key(lost.id))
    run_twice(reaper, clock)
    assert json.loads(services.redis.hget(job_key(job.id), "state")) == JobState.FAILED
    assert now(services, lost).state is JobState.QUEUED


@pytest.mark.parametrize("execution_id", ["garbage", '{"no": "sense"}'])
def test_damaged_execution_id_blocks_no_other_job(
    services: Services, queue: Queue, reaper: LostJobReaper, clock: Clock, job: Job, execution_id: str
) -> None:
    """Found by the fault harness: no job at all was requeued any more."""
    lost = services.store.create(make_job(), queue)
    for each in (job, lost):
        taken(services, queue, each)
    services.redis.hset(job_key(job.id), "execution_id", execution_id)
    services.redis.delete(lease_key(job.id), lease_key(lost.id))
    run_twice(reaper, clock)
    assert json.loads(services.redis.hget(job_key(job.id), "state")) == JobState.FAILED
    assert now(services, lost).state is JobState.QUEUED


def test_damaged_state_is_not_checked_for_ever(
    services: Services, reaper: LostJobReaper, clock: Clock, queue: Queue, job: Job
) -> None:
    queue.remove(job.id)
    services.redis.hset(job_key(job.id), "state", "garbage")
    run_twice(reaper, clock)
    assert json.loads(services.redis.hget(job_key(job.id), "state")) == JobState.FAILED
    reaper.run_once()
    assert services.redis.smembers(ACTIVE) == set()


def test_ended_job_is_handed_to_retention(services: Services, queue: Queue, reaper: LostJobReaper, job: Job) -> None:
    gone = services.store.create(make_job(), queue)
    taken(services, queue, job)
    services.store.complete(job.id, "e1", make_output(), {}, None)
    services.store.cancel(gone.id)
    services.store.delete(gone.id)
    reaper.run_once()
    assert services.redis.smembers(ACTIVE) == set()
    assert set(services.redis.zrange(ENDED, 0, -1)) == {job.id.encode(), gone.id.encode()}


def test_two_reapers_requeue_a_job_once(
    services: Services, queue: Queue, reaper: LostJobReaper, clock: Clock, job: Job
) -> None:
    retention = Retention(services.redis, services.store, services.storage, retention_s=60, tidy_after_s=10)
    other = LostJobReaper(services.redis, services.store, retention, grace_s=5, max_attempts=3, clock=clock)
    taken(services, queue, job)
    services.redis.delete(lease_key(job.id))
    for each in (reaper, other):
        each.run_once()
    clock.now += 5
    for each in (reaper, other):
        each.run_once()
    assert queue.job_ids == [job.id]
