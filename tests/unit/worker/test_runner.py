"""The parent's story of a job, against a real store; the child is scripted, because its faults are the subject."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from service.jobs import Job, JobState, Phase
from service.queues import generate_queue
from service.wiring import Services
from tests.factories import make_job, make_output
from worker import runner as runner_module
from worker.messages import Cancel, Done, Failed, Message, Progress, Run, Stopped
from worker.resident import ChildDied
from worker.runner import MAX_ATTEMPTS, Ending, Runner
from worker.scratch import Scratch

STEP = Progress(Phase.SAMPLING, 1, 20)


class ScriptedChild:
    """Says what the script says, one message a call; None is silence. A Cancel goes on to `after_cancel`."""

    def __init__(self, *script: Message | Exception | None, after_cancel: Message | None = None) -> None:
        self._script: Iterator[Message | Exception | None] = iter(script)
        self._after_cancel = after_cancel
        self.sent: list[Run | Cancel] = []
        self.kills = 0

    def ensure(self, beat: Callable[[], None]) -> None:
        beat()

    def send(self, message: Run | Cancel) -> None:
        self.sent.append(message)
        if isinstance(message, Cancel) and self._after_cancel is not None:
            self._script = iter([self._after_cancel])

    def receive(self, timeout_s: float) -> Message | None:
        message = next(self._script, None)
        if isinstance(message, Exception):
            raise message
        return message

    def kill(self) -> None:
        self.kills += 1


@pytest.fixture
def job(services: Services) -> Job:
    return services.store.create(make_job(), generate_queue(services.redis, "demo"))


def run(
    services: Services,
    job: Job,
    child: ScriptedChild,
    *,
    beat: Callable[[], None] = lambda: None,
    draining: Callable[[], bool] = lambda: False,
    stall_timeout_s: float = 60,
    job_timeout_s: float = 60,
    execution: str = "e1",
) -> Ending:
    runner = Runner(services.store, child, Scratch(services.settings.scratch_folder), stall_timeout_s, job_timeout_s)
    return runner.run(job.id, execution, beat=beat, is_draining=draining)


def now(services: Services, job: Job) -> Job:
    found = services.store.get(job.id)
    assert found is not None
    return found


def test_finished_job_is_completed_with_what_the_child_measured(services: Services, job: Job) -> None:
    child = ScriptedChild(STEP, None, Done(make_output(), {"sampling": 2.0}, 321.0))
    assert run(services, job, child) is Ending.OVER
    done = now(services, job)
    assert (done.state, done.output, done.timings, done.peak_memory_mb) == (
        JobState.COMPLETED,
        make_output(),
        {"sampling": 2.0},
        321.0,
    )
    (sent,) = child.sent
    assert isinstance(sent, Run)
    assert (sent.job.id, sent.job.execution_id, sent.execution_id) == (job.id, "e1", "e1")


def test_progress_is_in_the_record_while_the_child_works(services: Services, job: Job) -> None:
    seen: list[tuple[int, Phase | None]] = []
    script = (Progress(Phase.ENCODING, 0, 20), STEP, Progress(Phase.SAMPLING, 2, 20), Done(make_output(), {}, 1.0))
    run(
        services,
        job,
        ScriptedChild(*script),
        beat=lambda: seen.append((now(services, job).step, now(services, job).phase)),
    )
    assert seen[-3:] == [(0, Phase.ENCODING), (1, Phase.SAMPLING), (2, Phase.SAMPLING)]


def test_job_that_does_not_wait_any_more_is_not_started(services: Services, job: Job) -> None:
    services.store.cancel(job.id)
    child = ScriptedChild()
    assert run(services, job, child) is Ending.OVER
    assert child.sent == []


def test_cancelled_job_is_stopped_between_two_steps(services: Services, job: Job) -> None:
    child = ScriptedChild(STEP, after_cancel=Stopped())
    assert run(services, job, child, beat=lambda: services.store.cancel(job.id) and None) is Ending.OVER
    assert now(services, job).state is JobState.CANCELLED
    assert child.sent[-1] == Cancel("e1")


def test_cancel_reaches_a_child_that_is_silent(services: Services, job: Job) -> None:
    child = ScriptedChild(None, None, after_cancel=Stopped())
    run(services, job, child, beat=lambda: services.store.cancel(job.id) and None)
    assert now(services, job).state is JobState.CANCELLED


def test_child_that_does_not_hear_the_cancel_is_killed(
    services: Services, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "CANCEL_GRACE_S", 0.0)
    child = ScriptedChild(STEP)
    assert run(services, job, child, beat=lambda: services.store.cancel(job.id) and None) is Ending.OVER
    assert (child.kills, now(services, job).state) == (1, JobState.CANCELLED)


def test_draining_worker_gives_the_job_back_uncharged_by_rq(services: Services, job: Job) -> None:
    child = ScriptedChild(STEP, after_cancel=Stopped())
    assert run(services, job, child, draining=lambda: True) is Ending.AGAIN
    assert (now(services, job).state, now(services, job).execution_id) == (JobState.QUEUED, None)


def test_job_that_finishes_while_draining_is_kept(services: Services, job: Job) -> None:
    child = ScriptedChild(STEP, after_cancel=Done(make_output(), {}, 1.0))
    assert run(services, job, child, draining=lambda: True) is Ending.OVER
    assert now(services, job).state is JobState.COMPLETED


def test_child_that_dies_costs_an_attempt_and_the_last_one_fails_the_job(services: Services, job: Job) -> None:
    for attempt in range(1, MAX_ATTEMPTS):
        child = ScriptedChild(STEP, ChildDied("exit code -9"))
        assert run(services, job, child, execution=f"e{attempt}") is Ending.AGAIN
        assert (now(services, job).state, now(services, job).attempt, child.kills) == (JobState.QUEUED, attempt, 1)
    assert run(services, job, ScriptedChild(ChildDied("exit code -9")), execution="e9") is Ending.OVER
    error = now(services, job).error
    assert error is not None
    assert (now(services, job).state, error.code) == (JobState.FAILED, "worker_lost")


def test_child_without_a_sign_of_life_is_killed_and_the_job_tried_again(services: Services, job: Job) -> None:
    child = ScriptedChild(STEP)
    assert run(services, job, child, stall_timeout_s=0.0) is Ending.AGAIN
    assert child.kills == 1


def test_job_over_its_time_fails_with_the_limit_in_the_message(services: Services, job: Job) -> None:
    child = ScriptedChild(STEP)
    assert run(services, job, child, job_timeout_s=0.0) is Ending.OVER
    error = now(services, job).error
    assert error is not None
    assert (error.code, child.kills) == ("timeout", 1)


@pytest.mark.parametrize(
    ("can_retry", "ending", "state"), [(False, Ending.OVER, JobState.FAILED), (True, Ending.AGAIN, JobState.QUEUED)]
)
def test_failure_is_final_or_tried_again_as_the_child_says(
    services: Services, job: Job, can_retry: bool, ending: Ending, state: JobState
) -> None:
    assert run(services, job, ScriptedChild(Failed("out_of_memory", "too big", can_retry))) is ending
    assert now(services, job).state is state


def test_parent_that_lost_its_job_writes_nothing(services: Services, job: Job) -> None:
    """A zombie: it was stopped for so long that another worker took the job over."""

    def taken_over() -> None:
        services.store.start(job.id, "e2", take_over="e1")

    assert run(services, job, ScriptedChild(STEP, after_cancel=Stopped()), beat=taken_over) is Ending.OVER
    assert (now(services, job).state, now(services, job).execution_id) == (JobState.RUNNING, "e2")
    late = ScriptedChild(Done(make_output(), {}, 1.0))
    assert run(services, job, late, beat=taken_over) is Ending.OVER
    assert now(services, job).state is JobState.RUNNING
