"""One of many maintenance processes leads and runs the tasks; another takes over soon after it is gone."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from redis import Redis
from redis.exceptions import TimeoutError as RedisTimeout
from redis.lock import Lock

from service.jobs.keys import lease_key
from service.jobs.rq_queues import generate_queue
from service.maintenance.__main__ import periodic_tasks
from service.maintenance.leader import LEADER, MaintenanceLeader, PeriodicTask
from service.maintenance.rq_housekeeping import clean_registries
from service.wiring import Services
from tests.factories import make_job
from tests.processes import started, wait_for


@contextmanager
def running(
    redis: Redis, *tasks: PeriodicTask, lock_ttl_s: float = 1.0, renew_s: float = 0.1
) -> Iterator[threading.Event]:
    stopping = threading.Event()
    maintenance = MaintenanceLeader(redis, tasks, lock_ttl_s=lock_ttl_s, renew_s=renew_s)
    thread = threading.Thread(target=maintenance.run, args=(stopping,))
    thread.start()
    try:
        yield stopping
    finally:
        stopping.set()
        thread.join(10)


def test_one_of_two_leads_and_the_other_takes_over_when_it_stops(services: Services) -> None:
    done: list[str] = []
    with (
        running(services.redis, PeriodicTask("first", 0.02, lambda: done.append("first"))) as stop_first,
        running(services.redis, PeriodicTask("second", 0.02, lambda: done.append("second")), lock_ttl_s=60),
    ):
        wait_for(lambda: len(done) > 10)
        assert len(set(done)) == 1
        if done[0] == "first":
            stop_first.set()
            wait_for(lambda: "second" in done or None, timeout_s=10)


def test_a_killed_leader_is_replaced_when_its_lock_expires(services: Services) -> None:
    services.redis.set(LEADER, "dead", px=2500)
    done: list[str] = []
    with running(services.redis, PeriodicTask("task", 0.02, lambda: done.append("done"))):
        time.sleep(0.2)
        assert done == []
        wait_for(lambda: bool(done) or None, timeout_s=10)


def test_a_leader_that_lost_its_lock_runs_no_task(services: Services) -> None:
    done: list[float] = []
    with running(services.redis, PeriodicTask("task", 0.02, lambda: done.append(time.monotonic()))):
        wait_for(lambda: bool(done) or None)
        services.redis.set(LEADER, "another process")
        time.sleep(0.5)
        last = len(done)
        time.sleep(0.2)
        assert len(done) == last


def test_a_leader_leads_again_as_soon_as_redis_is_back(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise one lost reply would stop all requeuing until the lock expires."""
    done: list[float] = []
    with running(services.redis, PeriodicTask("task", 0.02, lambda: done.append(time.monotonic())), lock_ttl_s=60):
        wait_for(lambda: bool(done) or None)
        with monkeypatch.context() as away:
            away.setattr(Lock, "do_reacquire", lambda *_: (_ for _ in ()).throw(RedisTimeout()))
            time.sleep(0.3)
        last = len(done)
        wait_for(lambda: len(done) > last + 2 or None, timeout_s=20)


def test_a_task_that_fails_or_hangs_delays_no_other(services: Services) -> None:
    done: list[str] = []
    hanging = threading.Event()

    def fails() -> None:
        done.append("failed")
        raise RuntimeError

    tasks = (
        PeriodicTask("hangs", 0.02, hanging.wait),
        PeriodicTask("fails", 0.02, fails),
        PeriodicTask("works", 0.02, lambda: done.append("ok")),
    )
    with running(services.redis, *tasks):
        wait_for(lambda: (done.count("ok") > 3 and done.count("failed") > 3) or None)
        hanging.set()


def test_the_process_requeues_a_lost_job_and_stops_on_sigterm(services: Services) -> None:
    queue = generate_queue(services.redis, "demo")
    job = services.store.create(make_job(), queue)
    queue.empty()
    services.store.start(job.id, "e1")
    services.redis.delete(lease_key(job.id))
    environment = {
        "IVMIX_REDIS_URL": str(services.settings.redis_url),
        "IVMIX_DATA_DIR": str(services.settings.data_dir),
        "IVMIX_LEASE_S": "2",
        "IVMIX_BEAT_S": "0.5",
        "IVMIX_LOOK_S": "0.1",
    }
    with started(environment, "service.maintenance") as process:
        wait_for(lambda: queue.job_ids == [job.id] or None, timeout_s=30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not services.redis.exists(LEADER), "the next one need not wait"


def test_every_task_of_the_process_runs(services: Services) -> None:
    for task in periodic_tasks(services):
        task.run()


@pytest.mark.parametrize("age_s", [10, 10_000])
def test_executions_without_a_heartbeat_for_an_hour_are_removed(services: Services, age_s: float) -> None:
    queue = generate_queue(services.redis, "demo")
    queue.enqueue("os.getpid")
    services.redis.zadd(queue.started_job_registry.key, {"video_1:e1": time.time() - age_s})
    clean_registries(services.redis)
    assert services.redis.zcard(queue.started_job_registry.key) == (1 if age_s < 3600 else 0)
