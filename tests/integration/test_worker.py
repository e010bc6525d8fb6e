"""A real worker process with the demo models: its jobs, cancellation, shutdown, and a model that does not load."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis
from rq import Queue, Worker

from service.jobs.model import Job, JobState
from service.process.embedded_valkey import EmbeddedValkey
from service.process.heartbeat_file import HeartbeatFile
from service.settings import MODELS_FILE
from service.wiring import Services
from tests.factories import make_generation
from tests.job_waits import reaches, reaches_step
from tests.processes import child_of, fork_server_of, is_running, parent_of, wait_for, worker
from tests.unit.worker.scripted_child import ScriptedChild
from worker.parent.job_runner import Runner
from worker.parent.rq_worker import DEQUEUE_S, FRESH_S, GenerationWorker
from worker.scratch import Scratch

LONG = 400  # steps: some twenty seconds and more, so that there is a middle to be in


@pytest.fixture
def environment(services: Services) -> dict[str, str]:
    assert services.settings.redis_url is not None
    return {"IVMIX_REDIS_URL": services.settings.redis_url, "IVMIX_DATA_DIR": str(services.settings.data_dir)}


@pytest.fixture
def submit(services: Services, queue: Queue) -> Callable[[int], str]:
    """submit(steps) -> job id; plain DDIM, the cheaper one."""

    def send(steps: int) -> str:
        generation = make_generation(num_inference_steps=steps, sampler={"name": "ddim"})
        return services.store.create(Job.new(generation), queue).id

    return send


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -9)])
def test_worker_that_ends_while_it_loads_takes_its_child_with_it(
    environment: dict[str, str], number: signal.Signals, code: int
) -> None:
    with worker(environment) as process:
        child = child_of(process.pid)
        process.send_signal(number)
        assert process.wait(30) == code
        wait_for(lambda: not is_running(child), timeout_s=20, hint="for the child to end")


def test_running_job_is_cancelled_between_two_steps_and_the_same_child_completes_the_next(
    services: Services, environment: dict[str, str], submit: Callable[[int], str]
) -> None:
    long, short = submit(LONG), submit(1)
    with worker(environment) as process:
        reaches_step(services, long, 1)
        child = child_of(process.pid)
        services.store.cancel(long)
        assert reaches(services, long, JobState.CANCELLED).step < LONG
        done = reaches(services, short, JobState.COMPLETED)
        assert child_of(process.pid) == child
    assert done.output is not None
    assert services.storage.size(done.output.key) == done.output.size_bytes
    for key in (done.output.thumbnail_key, done.output.spritesheet_key):
        assert key is not None
        assert services.storage.size(key)
    assert set(done.timings) == {"encoding", "sampling", "decoding", "uploading"}
    assert done.peak_memory_mb is not None
    assert done.peak_memory_mb > 50


def test_replaced_child_has_torch_from_a_process_with_one_thread(
    services: Services, environment: dict[str, str], submit: Callable[[int], str]
) -> None:
    """A thread of the process that forks would be missing in the child, with the locks it holds."""
    with worker({**environment, "OMP_NUM_THREADS": "2"}) as process:
        reaches(services, submit(1), JobState.COMPLETED)
        server, first = fork_server_of(process.pid), child_of(process.pid)
        os.kill(first, signal.SIGKILL)
        reaches(services, submit(1), JobState.COMPLETED)
        assert parent_of(child_of(process.pid)) == server
        assert "libtorch" in Path(f"/proc/{server}/maps").read_text()
        assert len(os.listdir(f"/proc/{server}/task")) == 1


def test_function_that_is_not_ours_is_not_run(
    services: Services, environment: dict[str, str], queue: Queue, tmp_path: Path
) -> None:
    """Write access to Redis must not allow choosing what a GPU worker runs."""
    evil = queue.enqueue("os.mkdir", str(tmp_path / "owned"))
    with worker(environment, "tests.fake_worker"):
        wait_for(lambda: evil.get_status(refresh=True) in ("failed", "finished") or None, timeout_s=180)
    assert not (tmp_path / "owned").exists()


@pytest.mark.slow
def test_model_that_does_not_load_leaves_the_worker_running_until_it_is_stopped(
    services: Services, environment: dict[str, str], tmp_path: Path
) -> None:
    registry = tmp_path / "models.toml"
    registry.write_text(MODELS_FILE.read_text().replace('path = "../../demo/weights"', 'path = "nothing"'))
    named = {"IVMIX_MODELS_FILE": str(registry), "IVMIX_MODELS": "demo"}
    with worker({**environment, **named}) as process:
        reason = wait_for(lambda: services.loads.failures(["demo"]).get("demo"), timeout_s=90)
        assert reason.startswith("model folder nothing lacks")
        assert process.poll() is None
        process.terminate()
        assert process.wait(30) == 0
    assert services.loads.failures(["demo"]) == {}


def test_worker_stops_on_sigterm_even_without_redis(tmp_path: Path) -> None:
    """Its supervisor and the embedded server have ended: RQ alone would wait for the server forever."""
    server = EmbeddedValkey(tmp_path)
    url = server.start()
    environment = {"IVMIX_REDIS_URL": url, "IVMIX_DATA_DIR": str(tmp_path)}
    with worker(environment, "tests.fake_worker") as process:
        with Redis.from_url(url) as redis:
            wait_for(
                lambda: any(w.get_state() == "idle" for w in Worker.all(redis)), hint="for the worker to wait for jobs"
            )
        server.stop()
        time.sleep(DEQUEUE_S + 2)
        process.terminate()
        assert process.wait(40) in (0, 1)


def test_between_two_jobs_rqs_worker_record_is_written_once(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write waits for the disk, and the networks for it: RQ alone writes eleven times."""
    settings = services.settings
    runner = Runner(services.store, services.storage, ScriptedChild(), Scratch(settings.scratch_folder), settings)
    worker = GenerationWorker(services.redis, "demo", runner, threading.Event(), HeartbeatFile())
    now = time.monotonic()
    monkeypatch.setattr("worker.parent.rq_worker.time.monotonic", lambda: now)
    worker.set_state("idle")
    worker.heartbeat()
    services.redis.delete(worker.key)
    for _ in range(3):
        worker.heartbeat()
        worker.set_state("idle")
    assert not services.redis.exists(worker.key), "a second write"
    now += FRESH_S
    worker.heartbeat()
    worker.set_state("busy")
    assert services.redis.hget(worker.key, "last_heartbeat")
    assert services.redis.hget(worker.key, "state") == b"busy"
    assert services.redis.ttl(worker.key) > DEQUEUE_S
