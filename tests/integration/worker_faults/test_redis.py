"""The promises while Redis is down or holds what cannot be read."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rq import Queue

from service.jobs.keys import job_key
from service.wiring import Services
from tests.integration.worker_faults.conftest import FAKE, LEASE_S
from tests.job_waits import completed, reaches_step
from tests.processes import child_of, wait_for, worker
from tests.valkey import Valkey


def test_running_job_continues_while_redis_is_killed(
    services: Services, environment: dict[str, str], submit: Callable[..., str], server: Valkey
) -> None:
    job_id, waiting = submit("late@5", steps=10), submit()
    with worker(environment, FAKE) as process:
        reaches_step(services, job_id, 5)
        child = child_of(process.pid)
        server.kill()
        time.sleep(1)
        server.start()
        Path(environment["FAKE_GATE"]).touch()
        assert completed(services, job_id).attempt == 1
        completed(services, waiting)
        assert child_of(process.pid) == child, "the models stayed loaded"


@pytest.mark.sample(1)
@pytest.mark.usefixtures("maintenance")
@pytest.mark.parametrize("outage", ["killed", "frozen"])
def test_video_that_is_finished_while_redis_is_unreachable_is_kept(
    services: Services,
    environment: dict[str, str],
    submit: Callable[..., str],
    server: Valkey,
    outage: str,
    tmp_path: Path,
) -> None:
    """The outage is longer than the lease; nothing is worked on twice."""
    job_id = submit("late@5", steps=10)
    with worker(environment, FAKE):
        reaches_step(services, job_id, 5)
        server.kill() if outage == "killed" else server.freeze()
        Path(environment["FAKE_GATE"]).touch()
        wait_for(lambda: any((tmp_path / "data").rglob("video.mp4")) or None)
        time.sleep(LEASE_S + 1)
        server.start() if outage == "killed" else server.thaw()
        assert completed(services, job_id).attempt == 1


@pytest.mark.usefixtures("maintenance")
def test_waiting_job_whose_queue_entry_is_gone_is_done(
    services: Services, environment: dict[str, str], submit: Callable[..., str], queue: Queue
) -> None:
    job_id = submit()
    services.redis.delete(queue.key, f"rq:job:{job_id}")
    with worker(environment, FAKE):
        completed(services, job_id)


@pytest.mark.sample(1)
@pytest.mark.usefixtures("maintenance")
@pytest.mark.parametrize(("field", "value"), [("data", b"garbage"), ("created_at", b"garbage")])
def test_queue_entry_that_cannot_be_read_stops_neither_its_job_nor_the_worker(
    services: Services, environment: dict[str, str], submit: Callable[..., str], field: str, value: bytes
) -> None:
    poisoned, next_one = submit(), submit()
    services.redis.hset(f"rq:job:{poisoned}", field, value)
    with worker(environment, FAKE) as process:
        completed(services, next_one)
        completed(services, poisoned)
        assert process.poll() is None


def test_record_that_cannot_be_read_stops_no_worker(
    services: Services, environment: dict[str, str], submit: Callable[..., str]
) -> None:
    poisoned, next_one = submit(), submit()
    services.redis.hset(job_key(poisoned), "generation", "garbage")
    with worker(environment, FAKE):
        completed(services, next_one)
    assert services.redis.hget(job_key(poisoned), "state") == b'"failed"'


def test_nothing_of_an_ended_job_stays_in_rqs_registries(
    services: Services, environment: dict[str, str], submit: Callable[..., str], queue: Queue
) -> None:
    job_id = submit()

    def left() -> set[bytes]:
        return {key for key in services.redis.keys("*") if job_id.encode() in key and not key.startswith(b"ivm:")}

    with worker(environment, FAKE):
        completed(services, job_id)
        wait_for(lambda: services.redis.ttl(f"rq:job:{job_id}") > 0)
        wait_for(lambda: left() == {f"rq:job:{job_id}".encode()})
        wait_for(lambda: queue.started_job_registry.count == 0)
        assert queue.count == queue.finished_job_registry.count == queue.failed_job_registry.count == 0
