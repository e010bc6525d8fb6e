"""What a worker counts, and that docs/operations.md explains every metric."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

from service.jobs.model import Phase
from service.jobs.rq_queues import generate_queue
from service.storage.metrics import OPERATIONS, StorageCall
from service.wiring import Services
from tests.factories import make_job, make_output
from tests.unit.worker.scripted_child import STEP, ScriptedChild
from worker.messages import Done, Failed, Progress, Report, Run, Sampled, Stopped
from worker.parent.child_process import ChildDied
from worker.parent.job_runner import Runner
from worker.parent.metrics import WorkerMetrics
from worker.scratch import Scratch

DONE = Done(make_output(), {Phase.SAMPLING: 2.0, Phase.UPLOADING: 0.5}, 3.0)


class Clock:
    time = 0.0

    def now(self) -> float:
        return self.time


def value(metrics: WorkerMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def metrics(clock: Clock) -> WorkerMetrics:
    return WorkerMetrics(clock.now)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def runner(services: Services, metrics: WorkerMetrics) -> Iterator[Runner]:
    settings = services.settings
    runner = Runner(
        services.store, services.storage, ScriptedChild(), Scratch(settings.scratch_folder), settings, metrics
    )
    yield runner
    runner.background.close()


def run(
    runner: Runner, child: ScriptedChild, *, execution: str = "e", is_draining: bool = False, **settings: float
) -> None:
    with Redis.from_url(str(runner.settings.redis_url)) as redis:
        job = runner.store.create(make_job(), generate_queue(redis, "demo"))
    runner = replace(runner, child=child, settings=runner.settings.model_copy(update=settings))
    runner.run(job.id, execution, on_beat=lambda: None, is_draining=lambda: is_draining)


BROKEN = Failed("internal_error", "device lost", can_retry=True, is_broken=True)
TOO_LARGE = Failed("out_of_memory", "", can_retry=False)
ENDS: dict[str, Callable[[], tuple[ScriptedChild, dict[str, float]]]] = {
    "completed": lambda: (ScriptedChild(STEP, DONE), {}),
    "out_of_memory": lambda: (ScriptedChild(TOO_LARGE), {}),
    "internal_error": lambda: (ScriptedChild(BROKEN), {}),
    "stopped": lambda: (ScriptedChild(None, after_stop=Stopped()), {"is_draining": True}),
    "died": lambda: (ScriptedChild(ChildDied("exit code -9")), {}),
    "killed": lambda: (ScriptedChild(STEP), {"stall_timeout_s": 0.0}),
}


@pytest.mark.parametrize("outcome", ENDS)
def test_every_execution_is_counted_once_by_its_end(runner: Runner, metrics: WorkerMetrics, outcome: str) -> None:
    child, options = ENDS[outcome]()
    run(runner, child, **options)
    counted = {end: value(metrics, "ivmix_worker_executions_total", model="demo", outcome=end) for end in ENDS}
    assert counted == {**dict.fromkeys(ENDS), outcome: 1.0}
    assert value(metrics, "ivmix_worker_busy") == 0


def test_steps_phases_and_memory_are_those_of_the_job(runner: Runner, metrics: WorkerMetrics) -> None:
    steps = (Progress(Phase.SAMPLING, step, 4) for step in range(1, 5))
    run(runner, ScriptedChild(*steps, Progress(Phase.UPLOADING, 4, 4), DONE))
    assert value(metrics, "ivmix_worker_steps_total", model="demo") == 4
    assert value(metrics, "ivmix_worker_phase_seconds_sum", model="demo", phase="sampling") == 2.0
    assert value(metrics, "ivmix_worker_phase_seconds_count", model="demo", phase="uploading") == 1
    assert value(metrics, "ivmix_worker_peak_memory_bytes") == 3 * 2**20


def test_steps_that_another_worker_did_are_not_ours(runner: Runner, metrics: WorkerMetrics) -> None:
    run(runner, ScriptedChild(*(Progress(Phase.SAMPLING, step, 9) for step in (5, 6, 7)), DONE))
    assert value(metrics, "ivmix_worker_steps_total", model="demo") == 2


def test_a_job_is_counted_when_it_is_stored_and_the_gap_from_its_last_step(
    runner: Runner, metrics: WorkerMetrics, clock: Clock
) -> None:
    gate = threading.Event()
    run(runner, ScriptedChild(STEP, Sampled(), gate, DONE))
    assert value(metrics, "ivmix_worker_executions_total", model="demo", outcome="completed") is None
    assert value(metrics, "ivmix_worker_busy") == 1
    assert value(metrics, "ivmix_worker_gap_seconds_count") == 0
    clock.time = 0.25
    run(runner, ScriptedChild(TOO_LARGE), execution="f")
    assert value(metrics, "ivmix_worker_gap_seconds_sum") == 0.25
    assert value(metrics, "ivmix_worker_busy") == 1, "with the first"
    gate.set()
    runner.background.close()
    assert value(metrics, "ivmix_worker_executions_total", model="demo", outcome="completed") == 1
    assert value(metrics, "ivmix_worker_busy") == 0


def test_lost_job_is_counted(runner: Runner, metrics: WorkerMetrics) -> None:
    class Stolen(ScriptedChild):
        """Its job is requeued by maintenance while it works."""

        def receive(self, timeout_s: float) -> Report | None:
            run = self.sent[0]
            assert isinstance(run, Run)
            runner.store.requeue(run.job, run.execution_id)
            return super().receive(timeout_s)

    run(runner, Stolen(DONE))
    assert value(metrics, "ivmix_worker_leases_lost_total") == 1


def test_storage_calls_of_the_child_are_counted(runner: Runner, metrics: WorkerMetrics) -> None:
    run(runner, ScriptedChild(StorageCall("put", 0.25, is_ok=False), DONE))
    assert value(metrics, "ivmix_storage_seconds_sum", operation="put") == 0.25
    assert value(metrics, "ivmix_storage_errors_total", operation="put") == 1


def test_the_documentation_has_every_metric_and_no_other() -> None:
    document = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    documented = set(re.findall(r"`(ivmix_(?:worker|storage)_\w+)`", document))
    counted = set()
    for family in WorkerMetrics().registry.collect():
        if family.name.startswith("ivmix_"):
            counted.add(f"{family.name}_total" if family.type == "counter" else family.name)
    assert documented == counted


def test_the_documentation_has_every_storage_operation_and_no_other() -> None:
    document = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    (row,) = re.findall(r"^\| `ivmix_storage_seconds` \| `operation` \| (.*) \|$", document, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == set(OPERATIONS.values())
