"""What a worker counts, and that docs/operations.md explains every metric."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.jobs.model import Phase
from service.storage.metrics import StorageCall
from tests.factories import make_job, make_output
from tests.unit.worker.test_job_runner import ScriptedChannel, ScriptedChild
from worker.messages import Done, Failed, Message, Progress, Run, Sampled, Stopped
from worker.parent.child_process import ChildDied
from worker.parent.metrics import MeasuredChild, WorkerMetrics

DONE = Done(make_output(), {Phase.SAMPLING: 2.0, Phase.UPLOADING: 0.5}, 3.0)


class Clock:
    time = 0.0

    def now(self) -> float:
        return self.time


def value(metrics: WorkerMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def run(metrics: WorkerMetrics, *script: Message | StorageCall | Exception | None) -> MeasuredChild:
    child = MeasuredChild(ScriptedChild(*script), metrics)  # type: ignore[arg-type]
    child.send(Run(make_job(), "e"))
    for _ in script:
        child.receive(0)
    return child


@pytest.mark.parametrize(
    ("last", "outcome"),
    [(DONE, "completed"), (Failed("out_of_memory", "", can_retry=False), "out_of_memory"), (Stopped(), "stopped")],
)
def test_every_execution_is_counted_once_by_its_end(last: Message, outcome: str) -> None:
    metrics = WorkerMetrics()
    child = run(metrics, Progress(Phase.SAMPLING, 1, 2), last)
    child.kill()  # the parent ends
    assert value(metrics, "ivmix_worker_executions_total", model="demo", outcome=outcome) == 1
    assert value(metrics, "ivmix_worker_executions_total", model="demo", outcome="killed") is None
    assert value(metrics, "ivmix_worker_busy") == 0


def test_a_child_that_dies_and_one_that_has_to_be_killed_are_distinguished() -> None:
    metrics = WorkerMetrics()
    with pytest.raises(ChildDied):
        run(metrics, ChildDied("exit code -9"))
    run(metrics, None).kill()
    assert value(metrics, "ivmix_worker_executions_total", model="demo", outcome="died") == 1
    assert value(metrics, "ivmix_worker_executions_total", model="demo", outcome="killed") == 1


def test_a_job_that_is_worked_on_shows() -> None:
    metrics = WorkerMetrics()
    run(metrics, None)
    assert value(metrics, "ivmix_worker_busy") == 1


def test_steps_phases_and_memory_are_those_of_the_job() -> None:
    metrics = WorkerMetrics()
    run(metrics, *(Progress(Phase.SAMPLING, step, 4) for step in range(1, 5)), Progress(Phase.UPLOADING, 4, 4), DONE)
    assert value(metrics, "ivmix_worker_steps_total", model="demo") == 4
    assert value(metrics, "ivmix_worker_phase_seconds_sum", model="demo", phase="sampling") == 2.0
    assert value(metrics, "ivmix_worker_phase_seconds_count", model="demo", phase="uploading") == 1
    assert value(metrics, "ivmix_worker_peak_memory_bytes") == 3 * 2**20


def test_steps_that_another_worker_did_are_not_ours() -> None:
    metrics = WorkerMetrics()
    run(metrics, *(Progress(Phase.SAMPLING, step, 9) for step in (5, 6, 7)))
    assert value(metrics, "ivmix_worker_steps_total", model="demo") == 2


def test_a_job_is_counted_on_the_second_line_when_its_steps_are_done() -> None:
    clock = Clock()
    metrics = WorkerMetrics(clock.now)
    second = ScriptedChannel(Progress(Phase.DECODING, 4, 4), DONE)
    child = MeasuredChild(ScriptedChild(Sampled("e"), second=second), metrics)
    child.send(Run(make_job(), "e"))
    child.receive(0)
    channel = child.second()
    clock.time = 0.25
    child.send(Run(make_job(), "f"))
    assert value(metrics, "ivmix_worker_gap_seconds_sum") == 0.25
    assert value(metrics, "ivmix_worker_executions_total", model="demo", outcome="completed") is None
    assert (channel.receive(0), channel.receive(0)) == (Progress(Phase.DECODING, 4, 4), DONE)
    assert value(metrics, "ivmix_worker_executions_total", model="demo", outcome="completed") == 1
    assert value(metrics, "ivmix_worker_busy") == 1, "with the other"
    child.kill()
    assert value(metrics, "ivmix_worker_busy") == 0


def test_the_gap_is_between_the_end_of_one_job_and_the_begin_of_the_next() -> None:
    clock = Clock()
    metrics = WorkerMetrics(clock.now)
    run(metrics, DONE)
    assert value(metrics, "ivmix_worker_gap_seconds_count") == 0
    clock.time = 1.5
    run(metrics, DONE)
    assert value(metrics, "ivmix_worker_gap_seconds_sum") == 1.5


def test_what_the_storage_did_is_counted_and_not_passed_on() -> None:
    metrics = WorkerMetrics()
    child = MeasuredChild(ScriptedChild(StorageCall("put", 0.25, False), DONE), metrics)  # type: ignore[arg-type]
    child.send(Run(make_job(), "e"))
    assert child.receive(0) == DONE, "None would say that the child is silent, and it may be taken for hanging"
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
