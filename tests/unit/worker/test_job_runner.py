"""What the parent does with a job, against a real store; the child is scripted, because its faults are the subject."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError
from rq import Queue

from service.jobs.keys import job_key, lease_key
from service.jobs.model import Job, JobState, Phase
from service.jobs.store import LeaseReply
from service.storage import object_keys, sha256_of
from service.storage.metrics import StorageCall
from service.wiring import Services
from tests.factories import make_job, make_output
from tests.unit.worker.scripted_child import STEP, ScriptedChild
from worker.messages import CannotLoad, Done, Failed, Progress, Run, Stop, Stopped
from worker.parent.child_process import ChildDied, ModelsNotLoaded
from worker.parent.job_runner import Runner
from worker.scratch import Scratch

CHECKPOINT = StorageCall("put", 0.1, is_ok=True)


def run(
    services: Services,
    job: Job,
    child: ScriptedChild,
    *,
    on_beat: Callable[[], None] = lambda: None,
    draining: Callable[[], bool] = lambda: False,
    execution: str = "e1",
    **settings: float,
) -> bool:
    changed = services.settings.model_copy(update={"stall_timeout_s": 60.0, "beat_s": 1e-9} | settings)
    runner = Runner(services.store, services.storage, child, Scratch(changed.scratch_folder), changed)
    return runner.run(job.id, execution, on_beat=on_beat, is_draining=draining)


def now(services: Services, job: Job) -> Job:
    found = services.store.get(job.id)
    assert found is not None
    return found


def test_finished_job_is_completed_with_what_the_child_measured(services: Services, job: Job) -> None:
    timings = {"sampling": 2.0, "uploading": 30.0}
    child = ScriptedChild(STEP, None, Done(make_output(), timings, 321.0))
    assert run(services, job, child) is True
    done = now(services, job)
    assert (done.state, done.output, done.timings, done.peak_memory_mb) == (
        JobState.COMPLETED,
        make_output(),
        timings,
        321.0,
    )
    assert [seconds for _, seconds in services.store.recent_durations("demo")] == [2.0], "while it uploads, others run"
    (sent,) = child.sent
    assert isinstance(sent, Run)
    assert (sent.job.id, sent.job.execution_id, sent.execution_id, sent.may_resume) == (job.id, "e1", "e1", False)


def test_progress_is_in_the_record_while_the_child_works(services: Services, job: Job) -> None:
    seen: list[tuple[int, Phase | None, bytes | None]] = []
    last = Progress(Phase.SAMPLING, 2, 20, b"picture")
    script = (Progress(Phase.ENCODING, 0, 20), STEP, last, Done(make_output(), {}, 1.0))

    def look() -> None:
        seen.append((now(services, job).step, now(services, job).phase, services.store.preview(job.id)))

    run(services, job, ScriptedChild(*script), on_beat=look)
    assert seen[-3:] == [(0, Phase.ENCODING, None), (1, Phase.SAMPLING, None), (2, Phase.SAMPLING, b"picture")]


def test_job_that_does_not_wait_any_more_is_not_started(services: Services, job: Job) -> None:
    services.store.cancel(job.id)
    child = ScriptedChild()
    assert run(services, job, child) is True
    assert child.sent == []


def test_cancelled_job_is_stopped_between_two_steps(services: Services, job: Job) -> None:
    child = ScriptedChild(STEP, after_stop=Stopped())
    assert run(services, job, child, on_beat=lambda: services.store.cancel(job.id) and None) is True
    assert now(services, job).state is JobState.CANCELLED
    assert child.sent[-1] == Stop(save_checkpoint=False)


def test_cancel_reaches_a_child_that_is_silent(services: Services, job: Job) -> None:
    child = ScriptedChild(None, None, after_stop=Stopped())
    run(services, job, child, on_beat=lambda: services.store.cancel(job.id) and None)
    assert now(services, job).state is JobState.CANCELLED


def test_child_that_ignores_a_cancel_is_killed(services: Services, job: Job) -> None:
    child = ScriptedChild(STEP)
    cancel = lambda: services.store.cancel(job.id) and None  # noqa: E731
    assert run(services, job, child, on_beat=cancel, stop_grace_s=0.0) is True
    assert (child.kills, now(services, job).state) == (1, JobState.CANCELLED)


def test_draining_worker_gives_the_job_back_uncharged_and_at_the_front(
    services: Services, job: Job, queue: Queue
) -> None:
    other = services.store.create(make_job(), queue)
    child = ScriptedChild(STEP, after_stop=Stopped())
    assert run(services, job, child, draining=lambda: True) is False
    left = now(services, job)
    assert (left.state, left.execution_id, left.attempt) == (JobState.QUEUED, None, 0)
    assert queue.job_ids == [job.id, other.id]
    assert child.sent[-1] == Stop(save_checkpoint=True)


def test_worker_that_drains_while_the_models_load_gives_the_job_back(services: Services, job: Job) -> None:
    child = ScriptedChild(is_loading=True)
    assert run(services, job, child, draining=lambda: True) is False
    assert (child.sent, child.kills) == ([], 1)
    assert (now(services, job).state, now(services, job).attempt) == (JobState.QUEUED, 0)


def test_cancel_wins_over_a_drain(services: Services, job: Job) -> None:
    child = ScriptedChild(STEP, None, None, after_stop=None)
    draining = iter([False])

    def drain_and_cancel() -> bool:
        services.store.cancel(job.id)
        return next(draining, True)

    assert run(services, job, child, draining=drain_and_cancel, stop_grace_s=0.1) is True
    assert now(services, job).state is JobState.CANCELLED


def test_job_that_finishes_while_draining_is_kept(services: Services, job: Job) -> None:
    child = ScriptedChild(STEP, after_stop=Done(make_output(), {}, 1.0))
    assert run(services, job, child, draining=lambda: True) is True
    assert now(services, job).state is JobState.COMPLETED


def test_child_that_dies_costs_an_attempt_and_the_last_one_fails_the_job(
    services: Services, job: Job, queue: Queue
) -> None:
    most = services.settings.max_attempts
    for attempt in range(1, most):
        child = ScriptedChild(STEP, ChildDied("exit code -9"))
        assert run(services, job, child, execution=f"e{attempt}") is False
        assert (now(services, job).state, now(services, job).attempt, child.kills) == (JobState.QUEUED, attempt, 1)
        assert queue.job_ids == [job.id]
        queue.empty()
    assert run(services, job, ScriptedChild(ChildDied("exit code -9")), execution="e9") is True
    error = now(services, job).error
    assert error is not None
    assert (now(services, job).state, error.code) == (JobState.FAILED, "worker_lost")


def test_models_that_do_not_load_cost_no_attempt(services: Services, job: Job, queue: Queue) -> None:
    failure = ModelsNotLoaded(CannotLoad("broken", "broken"))
    for execution in ("e1", "e2", "e3", "e4"):
        assert run(services, job, ScriptedChild(load_failure=failure), execution=execution) is False
        assert (now(services, job).state, now(services, job).attempt) == (JobState.QUEUED, 0)
        assert queue.job_ids == [job.id]
        queue.empty()


def test_child_without_a_sign_of_life_is_killed_and_the_job_tried_again(services: Services, job: Job) -> None:
    child = ScriptedChild(STEP)
    assert run(services, job, child, stall_timeout_s=0.0) is False
    assert (child.kills, now(services, job).state) == (1, JobState.QUEUED)


def test_slow_redis_does_not_make_a_working_child_look_stuck(
    services: Services, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: the reports that arrive during a call of Redis are signs of life."""
    report = services.store.report_progress

    def slow(*progress: Any) -> LeaseReply:
        time.sleep(0.1)
        return report(*progress)

    monkeypatch.setattr(services.store, "report_progress", slow)
    assert run(services, job, ScriptedChild(STEP, CHECKPOINT, STEP, Done(make_output(), {}, 1.0)), stall_timeout_s=0.05)
    assert now(services, job).state is JobState.COMPLETED


def test_upload_that_waits_for_the_storage_is_no_hang(services: Services, job: Job) -> None:
    uploading = Progress(Phase.UPLOADING, 20, 20)
    child = ScriptedChild(uploading, None, None, Done(make_output(), {}, 1.0))
    assert run(services, job, child, stall_timeout_s=1e-6) is True
    assert now(services, job).state is JobState.COMPLETED


def test_job_over_its_time_fails_with_the_limit_in_the_message(services: Services, job: Job) -> None:
    child = ScriptedChild(STEP)
    assert run(services, job, child, job_timeout_s=0) is True
    error = now(services, job).error
    assert error is not None
    assert (error.code, error.message, child.kills) == ("timeout", "The job took longer than 0 s.", 1)


@pytest.mark.parametrize(
    ("can_retry", "is_over", "state"), [(False, True, JobState.FAILED), (True, False, JobState.QUEUED)]
)
def test_failure_is_final_or_tried_again_as_the_child_reports(
    services: Services, job: Job, can_retry: bool, is_over: bool, state: JobState
) -> None:
    child = ScriptedChild(Failed("out_of_memory", "too big", can_retry))
    assert run(services, job, child) is is_over
    assert (now(services, job).state, child.kills) == (state, 0)


def test_broken_child_is_replaced(services: Services, job: Job) -> None:
    child = ScriptedChild(Failed("internal_error", "device lost", can_retry=True, is_broken=True))
    assert run(services, job, child) is False
    assert child.kills == 1


def test_parent_that_lost_its_job_writes_nothing(services: Services, job: Job, queue: Queue) -> None:
    """A zombie: it was stopped for so long that another worker has the job."""

    def taken_over() -> None:
        services.store.requeue(job, "e1")
        services.store.start(job.id, "e2")

    assert run(services, job, ScriptedChild(STEP, None, None, after_stop=Stopped()), on_beat=taken_over) is False
    assert (now(services, job).state, now(services, job).execution_id) == (JobState.RUNNING, "e2")
    services.store.requeue(now(services, job), "e2")
    late = ScriptedChild(None, Done(make_output(), {}, 1.0))
    assert run(services, job, late, on_beat=taken_over) is False
    assert (now(services, job).state, now(services, job).execution_id) == (JobState.RUNNING, "e2")


def test_lease_is_renewed_while_the_models_load_and_while_the_child_is_silent(services: Services, job: Job) -> None:
    renewed: list[int] = []

    def shorten() -> None:
        renewed.append(services.redis.pttl(lease_key(job.id)))
        services.redis.pexpire(lease_key(job.id), 10)

    child = ScriptedChild(None, None, STEP, None, Done(make_output(), {}, 1.0), is_loading=True)
    run(services, job, child, on_beat=shorten)
    assert len(renewed) >= 3
    assert all(ms > 10_000 for ms in renewed)


def test_outage_of_redis_in_the_middle_changes_nothing(
    services: Services, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> LeaseReply:
        raise RedisError

    for name in ("check_lease", "renew_lease", "report_progress"):
        monkeypatch.setattr(services.store, name, away)
    assert run(services, job, ScriptedChild(STEP, None, STEP, Done(make_output(), {}, 1.0))) is True
    assert now(services, job).state is JobState.COMPLETED


def test_finished_video_waits_for_redis_to_come_back(
    services: Services, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, tries = services.store.complete, []

    def away(*args: object) -> bool:
        tries.append(args)
        if len(tries) < 4:
            raise RedisError
        return complete(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(services.store, "complete", away)
    assert run(services, job, ScriptedChild(Done(make_output(), {}, 1.0))) is True
    assert now(services, job).state is JobState.COMPLETED


@pytest.mark.parametrize(("draining", "patience"), [(False, {"commit_patience_s": 0.0}), (True, {"stop_grace_s": 0.0})])
def test_patience_with_redis_ends(
    services: Services, job: Job, monkeypatch: pytest.MonkeyPatch, draining: bool, patience: dict[str, float]
) -> None:
    def away(*_: object) -> bool:
        raise RedisError

    monkeypatch.setattr(services.store, "complete", away)
    child = ScriptedChild(Done(make_output(), {}, 1.0))
    with pytest.raises(RedisError):
        run(services, job, child, draining=lambda: draining, **patience)


def test_checkpoint_goes_with_the_end_of_the_job_and_stays_for_the_next_worker(
    services: Services, job: Job, queue: Queue, tmp_path: Path
) -> None:
    file = tmp_path / "state"
    file.write_bytes(b"state")
    key = object_keys.checkpoint(job.id)
    services.storage.put(file, key=key, media_type="x/y", sha256=sha256_of(file))
    run(services, job, ScriptedChild(STEP, after_stop=Stopped()), draining=lambda: True)
    assert services.storage.size(key) == 5
    child = ScriptedChild(Done(make_output(), {}, 1.0))
    run(services, job, child, execution="e2")
    assert isinstance(child.sent[0], Run)
    assert child.sent[0].may_resume
    assert services.storage.size(key) is None


def test_record_that_cannot_be_read_fails_and_the_worker_lives_on(services: Services, job: Job) -> None:
    services.redis.hset(job_key(job.id), "generation", "garbage")
    child = ScriptedChild()
    run(services, job, child)
    assert child.sent == []
    assert services.redis.hget(job_key(job.id), "state") == b'"failed"'
