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
from service.wiring import Services
from tests.factories import make_job, make_output
from tests.processes import wait_for
from tests.unit.worker.test_job_runner import STEP, ScriptedChannel, ScriptedChild, now
from worker.messages import Cancel, Done, Drain, Failed, Message, Progress, Sampled, Stopped
from worker.parent.child_process import ChildDied
from worker.parent.job_runner import Runner
from worker.scratch import Scratch

DONE = Done(make_output(), {"sampling": 2.0}, 321.0)
DECODING = Progress(Phase.DECODING, 20, 20)


class HeldLine(ScriptedChannel):
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
            on_finished=lambda: self.over.append(job.id),
        )

    def state(self, job: Job) -> JobState:
        return now(self.services, job).state


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
    runner.postprocessing.close()


def sampled(channel: ScriptedChannel, execution: str = "e1") -> ScriptedChild:
    return ScriptedChild(STEP, Sampled(execution), second=channel)


def test_networks_are_free_before_the_clip_is_stored(parent: Parent, job: Job) -> None:
    channel = HeldLine(DECODING, DONE)
    assert parent.run(job, sampled(channel)) is False
    assert (parent.state(job), parent.over) == (JobState.RUNNING, [])
    channel.go.set()
    parent.runner.postprocessing.close()
    done = now(parent.services, job)
    assert (done.state, done.output, done.timings) == (JobState.COMPLETED, make_output(), {"sampling": 2.0})
    assert parent.over == [job.id], "RQ's entry goes when the job is over, not before"


def test_lease_is_renewed_while_a_clip_is_stored(parent: Parent, job: Job) -> None:
    channel = HeldLine(DONE)
    parent.run(job, sampled(channel))
    key = lease_key(job.id)
    for _ in range(3):
        parent.services.redis.pexpire(key, 5000)
        wait_for(lambda: parent.services.redis.pttl(key) > 5000)  # type: ignore[operator]
    channel.go.set()


def test_jobs_are_committed_in_the_order_of_their_sampling(parent: Parent, new_job: Callable[[], Job]) -> None:
    first, second = new_job(), new_job()
    slow = HeldLine(DONE)
    parent.run(first, sampled(slow))
    running = threading.Thread(target=parent.run, args=(second, sampled(ScriptedChannel(DONE), "e2"), "e2"))
    running.start()
    wait_for(lambda: parent.beats.count(second.id) > 2, hint="the lease of the second is renewed while it waits")
    assert (parent.state(first), parent.state(second)) == (JobState.RUNNING, JobState.RUNNING)
    slow.go.set()
    running.join(30)
    parent.runner.postprocessing.close()
    assert parent.over == [first.id, second.id]
    assert (parent.state(first), parent.state(second)) == (JobState.COMPLETED, JobState.COMPLETED)


def test_child_that_dies_meanwhile_costs_an_attempt(parent: Parent, job: Job, queue: Queue) -> None:
    parent.run(job, sampled(ScriptedChannel(DECODING, ChildDied("exit code -9"))))
    parent.runner.postprocessing.close()
    assert (parent.state(job), now(parent.services, job).attempt) == (JobState.QUEUED, 1)
    assert queue.job_ids == [job.id]
    assert parent.over == []


def test_child_that_hangs_meanwhile_is_killed(parent: Parent, job: Job) -> None:
    object.__setattr__(parent.runner, "settings", parent.runner.settings.model_copy(update={"stall_timeout_s": 0.01}))
    channel = ScriptedChannel(DECODING)
    parent.run(job, ScriptedChild(Sampled("e1"), second=channel))
    parent.runner.postprocessing.close()
    assert (channel.kills, parent.state(job)) == (1, JobState.QUEUED)


def test_child_that_is_broken_meanwhile_is_killed(parent: Parent, job: Job) -> None:
    channel = ScriptedChannel(Failed("internal_error", "device lost", can_retry=True, is_broken=True))
    parent.run(job, sampled(channel))
    parent.runner.postprocessing.close()
    assert (channel.kills, parent.state(job)) == (1, JobState.QUEUED)


def test_child_of_a_hanging_job_is_given_time_to_finish_the_one_before(
    parent: Parent, new_job: Callable[[], Job]
) -> None:
    first, second = new_job(), new_job()
    channel = HeldLine(DONE)
    parent.run(first, sampled(channel))
    threading.Timer(0.1, channel.go.set).start()
    child = ScriptedChild(Failed("internal_error", "device lost", can_retry=True, is_broken=True))
    parent.run(second, child, "e2")
    assert (child.kills, parent.state(first)) == (1, JobState.COMPLETED)


def test_drain_and_cancel_are_sent_on_the_second_channel(parent: Parent, new_job: Callable[[], Job]) -> None:
    drained, cancelled = new_job(), new_job()
    channel = HeldLine(after_stop=Stopped())
    parent.run(drained, sampled(channel))
    parent.is_draining = True
    channel.go.set()
    parent.runner.postprocessing.close()
    left = now(parent.services, drained)
    assert (left.state, left.attempt, channel.sent) == (JobState.QUEUED, 0, [Drain("e1")])
    parent.is_draining = False
    channel = HeldLine(after_stop=Stopped())
    parent.run(cancelled, sampled(channel, "e2"), "e2")
    parent.services.store.cancel(cancelled.id)
    channel.go.set()
    parent.runner.postprocessing.close()
    assert (parent.state(cancelled), channel.sent) == (JobState.CANCELLED, [Cancel("e2")])
    assert parent.over == [cancelled.id]


def test_cancel_that_comes_with_the_last_step_is_not_lost(parent: Parent, job: Job) -> None:
    class Crossing(ScriptedChild):
        """Has said `Sampled` before the cancel reaches it, and ignores that."""

        def receive(self, timeout_s: float) -> Message | None:
            message = super().receive(timeout_s)
            if message == STEP:
                parent.services.store.cancel(job.id)
            return message

    channel = ScriptedChannel(after_stop=Stopped())
    parent.run(job, Crossing(STEP, None, Sampled("e1"), second=channel))
    parent.runner.postprocessing.close()
    assert (parent.state(job), channel.sent) == (JobState.CANCELLED, [Cancel("e1")])


def test_commit_that_fails_for_good_is_in_the_log_and_the_next_job_is_finished(
    parent: Parent, new_job: Callable[[], Job], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object) -> bool:
        raise RedisError("away")

    first, second = new_job(), new_job()
    object.__setattr__(parent.runner, "settings", parent.runner.settings.model_copy(update={"commit_patience_s": 0.0}))
    with monkeypatch.context() as patch:
        patch.setattr(parent.services.store, "complete", away)
        parent.run(first, sampled(ScriptedChannel(DONE)))
        parent.runner.postprocessing.close()
    assert "a job was not finished" in caplog.text
    parent.run(second, sampled(ScriptedChannel(DONE), "e2"), "e2")
    parent.runner.postprocessing.close()
    assert (parent.state(first), parent.state(second)) == (JobState.RUNNING, JobState.COMPLETED)
