"""What the parent does with a job whose steps are done, while the networks have the next one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
from redis.exceptions import RedisError
from rq import Queue

from service.jobs.keys import lease_key
from service.jobs.model import Job, JobState, Phase
from service.wiring import Services
from tests.factories import make_output
from tests.processes import wait_for
from tests.unit.worker.scripted_child import STEP, ScriptedChild
from tests.unit.worker.test_job_runner import now
from worker.messages import Done, Failed, Progress, Report, Run, Sampled, Stop, Stopped
from worker.parent.child_process import ChildDied
from worker.parent.job_runner import Runner
from worker.scratch import Scratch

DONE = Done(make_output(), {"sampling": 2.0}, 321.0)
BROKEN = Failed("internal_error", "device lost", can_retry=True, is_broken=True)
SAMPLED, DECODING = Sampled(), Progress(Phase.DECODING, 20, 20)


@dataclass
class Parent:
    services: Services
    runner: Runner
    over: list[str] = field(default_factory=list)
    beats: list[str] = field(default_factory=list)
    is_draining: bool = False

    def run(self, job: Job, child: ScriptedChild, execution: str = "e1") -> bool:
        return replace(self.runner, child=child).run(
            job.id,
            execution,
            on_beat=lambda: self.beats.append(job.id),
            is_draining=lambda: self.is_draining,
            on_finished=lambda: self.over.append(job.id),
        )

    def state(self, job: Job) -> JobState:
        return now(self.services, job).state


@pytest.fixture
def parent(services: Services) -> Iterator[Parent]:
    settings = services.settings.model_copy(update={"stall_timeout_s": 60.0, "beat_s": 1e-9, "stop_grace_s": 0.5})
    runner = Runner(services.store, services.storage, ScriptedChild(), Scratch(settings.scratch_folder), settings)
    yield Parent(services, runner)
    runner.background.close()


def test_networks_are_free_before_the_clip_is_stored(parent: Parent, job: Job) -> None:
    gate = threading.Event()
    assert parent.run(job, ScriptedChild(STEP, SAMPLED, gate, DECODING, DONE)) is False
    assert (parent.state(job), parent.over) == (JobState.RUNNING, [])
    gate.set()
    parent.runner.background.close()
    done = now(parent.services, job)
    assert (done.state, done.output, done.timings) == (JobState.COMPLETED, make_output(), {"sampling": 2.0})
    assert parent.over == [job.id], "RQ's entry goes when the job is over, not before"


def test_lease_is_renewed_while_a_clip_is_stored(parent: Parent, job: Job) -> None:
    gate = threading.Event()
    parent.run(job, ScriptedChild(SAMPLED, gate, DONE))
    key = lease_key(job.id)
    for _ in range(3):
        parent.services.redis.pexpire(key, 5000)
        wait_for(lambda: parent.services.redis.pttl(key) > 5000)  # type: ignore[operator]
    gate.set()


def test_jobs_are_committed_in_the_order_of_their_sampling(parent: Parent, new_job: Callable[[], Job]) -> None:
    first, second = new_job(), new_job()
    gate = threading.Event()
    parent.run(first, ScriptedChild(SAMPLED, gate, DONE))
    running = threading.Thread(target=parent.run, args=(second, ScriptedChild(SAMPLED, DONE), "e2"))
    running.start()
    wait_for(lambda: parent.beats.count(second.id) > 2, hint="the lease of the second is renewed while it waits")
    assert (parent.state(first), parent.state(second)) == (JobState.RUNNING, JobState.RUNNING)
    gate.set()
    running.join(30)
    parent.runner.background.close()
    assert parent.over == [first.id, second.id]
    assert (parent.state(first), parent.state(second)) == (JobState.COMPLETED, JobState.COMPLETED)


def test_child_that_dies_meanwhile_costs_an_attempt(parent: Parent, job: Job, queue: Queue) -> None:
    parent.run(job, ScriptedChild(SAMPLED, DECODING, ChildDied("exit code -9")))
    parent.runner.background.close()
    assert (parent.state(job), now(parent.services, job).attempt) == (JobState.QUEUED, 1)
    assert queue.job_ids == [job.id]
    assert parent.over == []


def test_child_that_hangs_meanwhile_is_killed(parent: Parent, job: Job) -> None:
    parent.runner = replace(parent.runner, settings=parent.runner.settings.model_copy(update={"stall_timeout_s": 0.01}))
    child = ScriptedChild(SAMPLED, DECODING, threading.Event())
    parent.run(job, child)
    parent.runner.background.close()
    assert (child.kills, parent.state(job)) == (1, JobState.QUEUED)


def test_child_that_is_broken_meanwhile_is_killed(parent: Parent, job: Job) -> None:
    child = ScriptedChild(SAMPLED, BROKEN)
    parent.run(job, child)
    parent.runner.background.close()
    assert (child.kills, parent.state(job)) == (1, JobState.QUEUED)


def test_child_of_a_hanging_job_is_given_time_to_finish_the_one_before(
    parent: Parent, new_job: Callable[[], Job]
) -> None:
    first, second = new_job(), new_job()
    gate = threading.Event()
    parent.run(first, ScriptedChild(SAMPLED, gate, DONE))
    threading.Timer(0.1, gate.set).start()
    child = ScriptedChild(BROKEN)
    parent.run(second, child, "e2")
    assert (child.kills, parent.state(first)) == (1, JobState.COMPLETED)


def test_drain_and_cancel_reach_a_job_that_is_decoded(parent: Parent, new_job: Callable[[], Job]) -> None:
    drained, cancelled = new_job(), new_job()
    child = ScriptedChild(SAMPLED, threading.Event(), after_stop=Stopped())
    parent.run(drained, child)
    parent.is_draining = True
    parent.runner.background.close()
    left = now(parent.services, drained)
    assert (left.state, left.attempt, child.sent[1:]) == (JobState.QUEUED, 0, [Stop(save_checkpoint=True)])
    parent.is_draining = False
    child = ScriptedChild(SAMPLED, threading.Event(), after_stop=Stopped())
    parent.run(cancelled, child, "e2")
    parent.services.store.cancel(cancelled.id)
    parent.runner.background.close()
    assert (parent.state(cancelled), child.sent[1:]) == (JobState.CANCELLED, [Stop(save_checkpoint=False)])
    assert parent.over == [cancelled.id]


def test_draining_worker_lets_a_sampled_clip_be_stored(parent: Parent, job: Job) -> None:
    child = ScriptedChild(SAMPLED, DECODING, None, None, DONE, after_stop=Stopped())
    parent.run(job, child)
    parent.is_draining = True
    parent.runner.background.close()
    assert (parent.state(job), len(child.sent)) == (JobState.COMPLETED, 1)


def test_cancel_that_comes_with_the_last_step_is_not_lost(parent: Parent, job: Job) -> None:
    class Late(ScriptedChild):
        """Obeys a stop only when it decodes: `Sampled` was on its way already."""

        def send(self, message: Run | Stop) -> None:
            self.sent.append(message)

        def receive(self, timeout_s: float) -> Report | None:
            report = super().receive(timeout_s)
            if report == STEP:
                parent.services.store.cancel(job.id)
            return report

    child = Late(STEP, None, SAMPLED, DECODING, Stopped())
    parent.run(job, child)
    parent.runner.background.close()
    assert (parent.state(job), child.sent[1:]) == (JobState.CANCELLED, [Stop(save_checkpoint=False)])


def test_commit_that_fails_for_good_is_in_the_log_and_the_next_job_is_finished(
    parent: Parent, new_job: Callable[[], Job], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object) -> bool:
        raise RedisError("away")

    first, second = new_job(), new_job()
    impatient = parent.runner.settings.model_copy(update={"commit_patience_s": 0.0})
    parent.runner = replace(parent.runner, settings=impatient)
    with monkeypatch.context() as patch:
        patch.setattr(parent.services.store, "complete", away)
        parent.run(first, ScriptedChild(SAMPLED, DONE))
        parent.runner.background.close()
    assert "a job was not finished" in caplog.text
    parent.run(second, ScriptedChild(SAMPLED, DONE), "e2")
    parent.runner.background.close()
    assert (parent.state(first), parent.state(second)) == (JobState.RUNNING, JobState.COMPLETED)
