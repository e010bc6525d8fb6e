"""What the parent does with a job whose steps are done, while the networks have the next one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from redis.exceptions import RedisError
from rq import Queue

from service.jobs.keys import lease_key
from service.jobs.model import Job, JobState, Phase
from service.jobs.rq_queues import generate_queue
from service.wiring import Services
from tests.factories import make_job, make_output
from tests.processes import wait_for
from tests.unit.worker.test_job_runner import STEP, ScriptedChild, ScriptedLine, now
from worker.messages import Cancel, Done, Drain, Failed, Message, Progress, Sampled, Stopped
from worker.parent.child_process import ChildDied
from worker.parent.job_runner import Runner
from worker.scratch import Scratch

DONE = Done(make_output(), {"sampling": 2.0}, 321.0)
DECODING = Progress(Phase.DECODING, 20, 20)


class HeldLine(ScriptedLine):
    """Silent until it is let go."""

    def __init__(self, *script: Message | Exception | None, after_stop: Message | None = None) -> None:
        super().__init__(*script, after_stop=after_stop)
        self.go = threading.Event()

    def receive(self, timeout_s: float) -> Message | None:
        return super().receive(timeout_s) if self.go.wait(min(timeout_s, 0.01)) else None


@dataclass
class Parent:
    services: Services
    runner: Runner
    over: list[str] = field(default_factory=list)
    beats: list[str] = field(default_factory=list)
    is_draining: bool = False

    def run(self, job: Job, child: ScriptedChild, execution: str = "e1") -> bool:
        object.__setattr__(self.runner, "child", child)
        return self.runner.run(
            job.id,
            execution,
            on_beat=lambda: self.beats.append(job.id),
            is_draining=lambda: self.is_draining,
            on_over=lambda: self.over.append(job.id),
        )

    def state(self, job: Job) -> JobState:
        return now(self.services, job).state


@pytest.fixture
def queue(services: Services) -> Queue:
    return generate_queue(services.redis, "demo")


@pytest.fixture
def new_job(services: Services, queue: Queue) -> Callable[[], Job]:
    def new() -> Job:
        created = services.store.create(make_job(), queue)
        queue.empty()  # taken, as RQ does before it calls us
        return created

    return new


@pytest.fixture
def job(new_job: Callable[[], Job]) -> Job:
    return new_job()


@pytest.fixture
def parent(services: Services) -> Iterator[Parent]:
    settings = services.settings.model_copy(update={"stall_timeout_s": 60.0, "beat_s": 1e-9, "stop_grace_s": 0.5})
    runner = Runner(services.store, services.storage, ScriptedChild(), Scratch(settings.scratch_folder), settings)
    yield Parent(services, runner)
    runner.finishing.close()


def sampled(line: ScriptedLine, execution: str = "e1") -> ScriptedChild:
    return ScriptedChild(STEP, Sampled(execution), second=line)


def test_networks_are_free_before_the_clip_is_stored(parent: Parent, job: Job) -> None:
    line = HeldLine(DECODING, DONE)
    assert parent.run(job, sampled(line)) is False
    assert (parent.state(job), parent.over) == (JobState.RUNNING, [])
    line.go.set()
    parent.runner.finishing.close()
    done = now(parent.services, job)
    assert (done.state, done.output, done.timings) == (JobState.COMPLETED, make_output(), {"sampling": 2.0})
    assert parent.over == [job.id], "RQ's entry goes when the job is over, not before"


def test_lease_is_renewed_while_a_clip_is_stored(parent: Parent, job: Job) -> None:
    line = HeldLine(DONE)
    parent.run(job, sampled(line))
    key = lease_key(job.id)
    for _ in range(3):
        parent.services.redis.pexpire(key, 5000)
        wait_for(lambda: parent.services.redis.pttl(key) > 5000)  # type: ignore[operator]
    line.go.set()


def test_jobs_are_committed_in_the_order_of_their_sampling(parent: Parent, new_job: Callable[[], Job]) -> None:
    first, second = new_job(), new_job()
    slow = HeldLine(DONE)
    parent.run(first, sampled(slow))
    running = threading.Thread(target=parent.run, args=(second, sampled(ScriptedLine(DONE), "e2"), "e2"))
    running.start()
    wait_for(lambda: parent.beats.count(second.id) > 2, hint="the second is kept while it waits")
    assert (parent.state(first), parent.state(second)) == (JobState.RUNNING, JobState.RUNNING)
    slow.go.set()
    running.join(30)
    parent.runner.finishing.close()
    assert parent.over == [first.id, second.id]
    assert (parent.state(first), parent.state(second)) == (JobState.COMPLETED, JobState.COMPLETED)


def test_child_that_dies_meanwhile_costs_an_attempt(parent: Parent, job: Job, queue: Queue) -> None:
    parent.run(job, sampled(ScriptedLine(DECODING, ChildDied("exit code -9"))))
    parent.runner.finishing.close()
    assert (parent.state(job), now(parent.services, job).attempt) == (JobState.QUEUED, 1)
    assert queue.job_ids == [job.id]
    assert parent.over == []


def test_child_that_hangs_meanwhile_is_killed(parent: Parent, job: Job) -> None:
    object.__setattr__(parent.runner, "settings", parent.runner.settings.model_copy(update={"stall_timeout_s": 0.01}))
    line = ScriptedLine(DECODING)
    parent.run(job, ScriptedChild(Sampled("e1"), second=line))
    parent.runner.finishing.close()
    assert (line.kills, parent.state(job)) == (1, JobState.QUEUED)


def test_child_that_is_broken_meanwhile_is_killed(parent: Parent, job: Job) -> None:
    line = ScriptedLine(Failed("internal_error", "device lost", can_retry=True, is_broken=True))
    parent.run(job, sampled(line))
    parent.runner.finishing.close()
    assert (line.kills, parent.state(job)) == (1, JobState.QUEUED)


def test_child_of_a_hanging_job_is_given_time_to_finish_the_one_before(
    parent: Parent, new_job: Callable[[], Job]
) -> None:
    first, second = new_job(), new_job()
    line = HeldLine(DONE)
    parent.run(first, sampled(line))
    threading.Timer(0.1, line.go.set).start()
    child = ScriptedChild(Failed("internal_error", "device lost", can_retry=True, is_broken=True))
    parent.run(second, child, "e2")
    assert (child.kills, parent.state(first)) == (1, JobState.COMPLETED)


def test_drain_and_cancel_are_told_on_the_second_line(parent: Parent, new_job: Callable[[], Job]) -> None:
    drained, cancelled = new_job(), new_job()
    line = HeldLine(after_stop=Stopped())
    parent.run(drained, sampled(line))
    parent.is_draining = True
    line.go.set()
    parent.runner.finishing.close()
    left = now(parent.services, drained)
    assert (left.state, left.attempt, line.sent) == (JobState.QUEUED, 0, [Drain("e1")])
    parent.is_draining = False
    line = HeldLine(after_stop=Stopped())
    parent.run(cancelled, sampled(line, "e2"), "e2")
    parent.services.store.cancel(cancelled.id)
    line.go.set()
    parent.runner.finishing.close()
    assert (parent.state(cancelled), line.sent) == (JobState.CANCELLED, [Cancel("e2")])
    assert parent.over == [cancelled.id]


def test_cancel_that_comes_with_the_last_step_is_not_lost(parent: Parent, job: Job) -> None:
    class Crossing(ScriptedChild):
        """Has said `Sampled` before the cancel reaches it, and ignores that."""

        def receive(self, timeout_s: float) -> Message | None:
            message = super().receive(timeout_s)
            if message == STEP:
                parent.services.store.cancel(job.id)
            return message

    line = ScriptedLine(after_stop=Stopped())
    parent.run(job, Crossing(STEP, None, Sampled("e1"), second=line))
    parent.runner.finishing.close()
    assert (parent.state(job), line.sent) == (JobState.CANCELLED, [Cancel("e1")])


def test_commit_that_fails_for_good_is_in_the_log_and_the_next_job_is_finished(
    parent: Parent, new_job: Callable[[], Job], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object) -> bool:
        raise RedisError("away")

    first, second = new_job(), new_job()
    object.__setattr__(parent.runner, "settings", parent.runner.settings.model_copy(update={"commit_patience_s": 0.0}))
    with monkeypatch.context() as patch:
        patch.setattr(parent.services.store, "complete", away)
        parent.run(first, sampled(ScriptedLine(DONE)))
        parent.runner.finishing.close()
    assert "a job was not finished" in caplog.text
    parent.run(second, sampled(ScriptedLine(DONE), "e2"), "e2")
    parent.runner.finishing.close()
    assert (parent.state(first), parent.state(second)) == (JobState.RUNNING, JobState.COMPLETED)
