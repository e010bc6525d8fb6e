"""A model is unavailable if a worker says that it cannot load it and no other has loaded it or is loading it: then the
API does not offer it, and its jobs fail after a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import Queue

from service.jobs.keys import loads_key
from service.jobs.model import Job, JobError, JobState
from service.jobs.model_loads import ModelLoads
from service.jobs.outbox import LISTENERS
from service.jobs.rq_queues import generate_queue
from service.maintenance.unavailable_models import BATCH, GRACE_S, UnavailableModels
from service.process.heartbeat_file import HeartbeatFile
from service.wiring import Services
from tests.api_calls import create, error_of
from tests.factories import PROMPT, create_job, make_generation, make_job
from tests.unit.worker.scripted_child import ScriptedChild
from worker.parent.job_runner import Runner
from worker.parent.rq_worker import GenerationWorker
from worker.scratch import Scratch

REASON = "unet/diffusion_pytorch_model.safetensors is not a safetensors file"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def loads(services: Services) -> ModelLoads:
    return services.loads


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def maintenance(services: Services, clock: Clock) -> UnavailableModels:
    return UnavailableModels(services.redis, services.store, services.loads, clock=clock)


@contextmanager
def loaded_worker(services: Services, model: str = "demo") -> Iterator[GenerationWorker]:
    """A worker as RQ registers it."""
    settings = services.settings
    runner = Runner(services.store, services.storage, ScriptedChild(), Scratch(settings.scratch_folder), settings)
    worker = GenerationWorker(services.redis, model, runner, threading.Event(), HeartbeatFile())
    worker.register_birth()
    yield worker
    worker.register_death()


def after_grace(maintenance: UnavailableModels, clock: Clock) -> None:
    maintenance.run_once()
    clock.now += GRACE_S
    maintenance.run_once()


def state(services: Services, job: Job) -> tuple[JobState, JobError | None]:
    found = services.store.get(job.id)
    assert found is not None
    return found.state, found.error


class TestRules:
    def test_without_a_report_every_model_is_available(self, loads: ModelLoads) -> None:
        assert loads.failures(["demo", "other"]) == {}
        assert loads.failures([]) == {}

    def test_a_model_that_one_worker_cannot_load_is_unavailable_and_others_are_not(self, loads: ModelLoads) -> None:
        loads.report("demo", "w1", REASON)
        assert loads.failures(["other", "demo"]) == {"demo": REASON}

    def test_a_worker_that_still_loads_may_succeed(self, loads: ModelLoads) -> None:
        loads.report("demo", "broken", REASON)
        loads.report("demo", "slow", "")
        assert loads.failures(["demo"]) == {}
        loads.report("demo", "slow", REASON)
        assert loads.failures(["demo"]) == {"demo": REASON}

    def test_a_worker_that_has_loaded_it_keeps_it_available_until_it_ends(
        self, loads: ModelLoads, services: Services
    ) -> None:
        loads.report("demo", "broken", REASON)
        with loaded_worker(services):
            assert loads.failures(["demo"]) == {}
        assert loads.failures(["demo"]) == {"demo": REASON}
        with loaded_worker(services, "other"):
            assert loads.failures(["demo"]) == {"demo": REASON}

    def test_a_killed_worker_counts_no_more_when_its_key_has_expired(
        self, loads: ModelLoads, services: Services
    ) -> None:
        loads.report("demo", "broken", REASON)
        with loaded_worker(services) as worker:
            worker.heartbeat()
            assert 0 < services.redis.ttl(worker.key) <= services.settings.lease_s  # type: ignore[operator]
            services.redis.delete(worker.key)
            assert loads.failures(["demo"]) == {"demo": REASON}

    def test_reports_expire(self, services: Services) -> None:
        loads = ModelLoads(services.redis, entry_ttl_s=0.5)
        loads.report("demo", "killed", "")
        time.sleep(0.3)
        loads.report("demo", "broken", REASON)  # its entry lives on, and that of the other does not
        time.sleep(0.3)
        assert loads.failures(["demo"]) == {"demo": REASON}
        loads.report("demo", "broken", REASON)
        assert services.redis.hkeys(loads_key("demo")) == [b"broken"]
        time.sleep(0.6)
        assert loads.failures(["demo"]) == {}
        assert not services.redis.exists(loads_key("demo"))

    def test_a_worker_that_has_loaded_it_after_all_withdraws_its_report(self, loads: ModelLoads) -> None:
        loads.report("demo", "w1", "one\nreason of two lines")
        assert loads.failures(["demo"]) == {"demo": "one\nreason of two lines"}
        loads.forget("demo", "w1")
        assert loads.failures(["demo"]) == {}


class TestApi:
    def test_it_is_not_offered(self, client: TestClient, loads: ModelLoads) -> None:
        loads.report("demo", "w1", REASON)
        assert client.get("/v1/models").json()["data"] == []
        error = error_of(client.get("/v1/models/demo"), 503)
        assert (error["code"], error["message"]) == (
            "model_unavailable",
            f"Model 'demo' cannot be loaded at present: {REASON}",
        )
        loads.forget("demo", "w1")
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["demo"]

    @pytest.mark.parametrize("route", ["/v1/videos", "/v1/videos/sync", "remix", "run_again"])
    def test_a_request_for_it_is_refused_before_anything_is_written(
        self, client: TestClient, services: Services, queue: Queue, route: str
    ) -> None:
        first = create(client)
        services.loads.report("demo", "w1", REASON)
        path = route if route.startswith("/") else f"/v1/videos/{first['id']}/{route}"
        body = {} if route == "run_again" else {"prompt": PROMPT}
        answer = client.post(path, json=body, headers={"Idempotency-Key": "key"})
        assert error_of(answer, 503)["code"] == "model_unavailable"
        assert REASON in error_of(answer, 503)["message"]
        assert int(answer.headers["retry-after"]) > 0
        assert queue.job_ids == [first["id"]]
        services.loads.forget("demo", "w1")
        assert create(client)["status"] == "queued"

    def test_a_repeated_request_gets_its_video(self, client: TestClient, services: Services) -> None:
        headers = {"Idempotency-Key": "key"}
        first = client.post("/v1/videos", json={"prompt": PROMPT}, headers=headers).json()
        services.loads.report("demo", "w1", REASON)
        assert client.post("/v1/videos", json={"prompt": PROMPT}, headers=headers).json()["id"] == first["id"]

    def test_queue_and_metrics_say_it(self, client: TestClient, loads: ModelLoads) -> None:
        assert client.get("/v1/queue").json()["data"][0]["unavailable"] is None
        assert 'ivmix_model_unavailable{model="demo"} 0.0' in client.get("/metrics").text
        loads.report("demo", "w1", REASON)
        assert client.get("/v1/queue").json()["data"][0]["unavailable"] == REASON
        assert 'ivmix_model_unavailable{model="demo"} 1.0' in client.get("/metrics").text


class TestQueuedJobs:
    def test_they_fail_with_the_reason_and_others_wait(
        self, services: Services, queue: Queue, maintenance: UnavailableModels, clock: Clock
    ) -> None:
        services.redis.sadd(LISTENERS, '"local"')
        jobs = [create_job(services.store, queue) for _ in range(BATCH + 5)]
        running = create_job(services.store, queue)
        services.store.start(running.id, "e1")
        other = make_job(generation=make_generation(model="other"))
        services.store.create(other, generate_queue(services.redis, "other"))
        services.loads.report("demo", "w1", REASON)
        maintenance.run_once()
        clock.now += GRACE_S - 1
        maintenance.run_once()
        assert state(services, jobs[0]) == (JobState.QUEUED, None)
        clock.now += 1
        maintenance.run_once()
        error = JobError(code="model_unavailable", message=f"Model 'demo' cannot be loaded at present: {REASON}")
        assert {state(services, job) for job in jobs} == {(JobState.FAILED, error)}
        assert state(services, running)[0] is JobState.RUNNING
        assert state(services, other)[0] is JobState.QUEUED
        assert services.webhooks.outbox.depth() == len(jobs)
        services.store.requeue(running, "e1")  # its worker lost its models
        maintenance.run_once()
        assert state(services, running) == (JobState.FAILED, error)

    def test_they_wait_for_a_slow_first_load(
        self, services: Services, queue: Queue, maintenance: UnavailableModels, clock: Clock
    ) -> None:
        job = create_job(services.store, queue)
        services.loads.report("demo", "w1", "")
        for _ in range(900):
            clock.now += 1
            maintenance.run_once()
        assert state(services, job) == (JobState.QUEUED, None)

    def test_a_healthy_second_worker_keeps_them(
        self, services: Services, queue: Queue, maintenance: UnavailableModels, clock: Clock
    ) -> None:
        job = create_job(services.store, queue)
        services.loads.report("demo", "broken", REASON)
        with loaded_worker(services):
            after_grace(maintenance, clock)
            assert state(services, job) == (JobState.QUEUED, None)
        maintenance.run_once()
        assert state(services, job) == (JobState.QUEUED, None), "the time begins when the last healthy one ends"
        after_grace(maintenance, clock)
        assert state(services, job)[0] is JobState.FAILED

    def test_a_model_that_is_soon_back_loses_none(
        self, services: Services, queue: Queue, maintenance: UnavailableModels, clock: Clock
    ) -> None:
        job = create_job(services.store, queue)
        for _ in range(5):
            services.loads.report("demo", "w1", REASON)
            maintenance.run_once()
            clock.now += GRACE_S - 1
            services.loads.forget("demo", "w1")
            maintenance.run_once()
        assert state(services, job) == (JobState.QUEUED, None)

    def test_an_outage_of_redis_starts_the_time_again(
        self,
        services: Services,
        queue: Queue,
        maintenance: UnavailableModels,
        clock: Clock,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        job = create_job(services.store, queue)
        services.loads.report("demo", "w1", REASON)
        maintenance.run_once()

        def fails(_models: object) -> None:
            raise RedisConnectionError

        with monkeypatch.context() as outage:
            outage.setattr(services.loads, "failures", fails)
            with pytest.raises(RedisConnectionError):
                maintenance.run_once()
        clock.now += GRACE_S
        maintenance.run_once()
        assert state(services, job) == (JobState.QUEUED, None)

    def test_without_a_worker_they_wait(
        self, services: Services, queue: Queue, maintenance: UnavailableModels, clock: Clock
    ) -> None:
        job = create_job(services.store, queue)
        after_grace(maintenance, clock)
        assert state(services, job) == (JobState.QUEUED, None)
