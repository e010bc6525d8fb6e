"""The life of a job in the store, from the queue to its end."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis.exceptions import RedisError
from rq import Queue

from service.jobs.keys import INDEX, job_key
from service.jobs.model import ALLOWED_TRANSITIONS, JobError, JobState, Phase
from service.jobs.rq_queues import generate_queue
from service.jobs.store import Deletion, JobStore, LeaseReply
from service.wiring import Services
from tests.factories import complete_job, create_job, make_output

ERROR = JobError(code="timeout", message="Too slow.")


def test_a_created_job_is_recorded_indexed_and_queued(store: JobStore, queue: Queue) -> None:
    job = create_job(store, queue, metadata={"a": "b"}, user="u")
    assert store.get(job.id) == job
    assert store.list()[0] == [job]
    assert queue.job_ids == [job.id]


def test_a_job_that_cannot_be_queued_leaves_nothing_behind(store: JobStore, queue: Queue, services: Services) -> None:
    services.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(RedisError):
            create_job(store, queue)
    finally:
        services.redis.config_set("maxmemory", 0)
    assert services.redis.keys("*ivm*") == []
    assert queue.job_ids == []


def test_an_unknown_job_is_none_everywhere(store: JobStore) -> None:
    assert store.get("video_x") is None
    assert store.start("video_x", "e") is None
    assert store.cancel("video_x") is None
    assert store.delete("video_x") is None
    assert not store.fail("video_x", None, ERROR)
    assert store.report_progress("video_x", "e", 1, 2, Phase.SAMPLING) is LeaseReply.LOST


def test_a_job_from_queue_to_video(store: JobStore, queue: Queue) -> None:
    job = create_job(store, queue)
    running = store.start(job.id, "e1")
    assert running is not None
    assert (running.state, running.attempt, running.execution_id) == (JobState.RUNNING, 1, "e1")
    assert running.started_at is not None
    assert store.report_progress(job.id, "e1", 5, 20, Phase.SAMPLING) is LeaseReply.CONTINUE
    shown = store.get(job.id)
    assert shown is not None
    assert (shown.progress, shown.phase) == (25, Phase.SAMPLING)
    assert complete_job(store, job.id, "e1")
    done = store.get(job.id)
    assert done is not None
    assert (done.state, done.progress, done.phase) == (JobState.COMPLETED, 100, None)
    assert (done.output, done.timings, done.peak_memory_mb) == (make_output(), {"sampling": 1.5}, 12.5)
    assert done.completed_at is not None
    assert done.expires_at == pytest.approx(done.completed_at + 7 * 86400)


def test_of_many_workers_exactly_one_gets_a_job(store: JobStore, queue: Queue) -> None:
    job = create_job(store, queue)
    with ThreadPoolExecutor(16) as pool:
        taken = list(pool.map(lambda i: store.start(job.id, f"e{i}"), range(16)))
    winners = [running for running in taken if running]
    assert len(winners) == 1
    assert winners[0].attempt == 1


def test_a_repeated_start_is_one_start(store: JobStore, queue: Queue) -> None:
    """redis-py sends a command again if its reply was lost."""
    job = create_job(store, queue)
    assert store.start(job.id, "e1") == store.start(job.id, "e1")


def test_a_repeated_end_is_one_end(store: JobStore, queue: Queue) -> None:
    job = create_job(store, queue)
    store.start(job.id, "e1")
    assert complete_job(store, job.id, "e1")
    first = store.get(job.id)
    assert complete_job(store, job.id, "e1")
    assert store.get(job.id) == first
    assert not complete_job(store, job.id, "e2")
    assert not store.fail(job.id, "e1", ERROR)


def test_a_requeued_job_is_at_the_front_and_remembers_how_far_it_was(store: JobStore, queue: Queue) -> None:
    job, other = create_job(store, queue), create_job(store, queue)
    queue.remove(job.id)  # as a worker does when it takes a job
    first = store.start(job.id, "e1")
    assert first is not None
    store.report_progress(job.id, "e1", 7, 20, Phase.SAMPLING)
    assert store.requeue(first, "e1")
    waiting = store.get(job.id)
    assert waiting is not None
    assert (waiting.state, waiting.execution_id, waiting.phase, waiting.step) == (JobState.QUEUED, None, None, 7)
    assert queue.job_ids == [job.id, other.id]
    assert not store.requeue(first, "e1")  # repeated: still queued once
    assert queue.job_ids == [job.id, other.id]
    second = store.start(job.id, "e2")
    assert second is not None
    assert (second.attempt, second.started_at) == (2, first.started_at)


def test_a_drain_does_not_count_as_an_attempt(store: JobStore, queue: Queue) -> None:
    job = create_job(store, queue)
    for execution in ("e1", "e2", "e3"):
        running = store.start(job.id, execution)
        assert running is not None
        assert running.attempt == 1
        store.requeue(running, execution, counts_as_attempt=False)


def test_requeuing_a_job_with_a_requested_cancellation_cancels_it(store: JobStore, queue: Queue) -> None:
    job = create_job(store, queue)
    queue.empty()
    running = store.start(job.id, "e1")
    assert running is not None
    store.cancel(job.id)
    assert not store.requeue(running, "e1")
    cancelled = store.get(job.id)
    assert cancelled is not None
    assert cancelled.state is JobState.CANCELLED
    assert queue.job_ids == []


def test_progress_never_goes_back(store: JobStore, queue: Queue) -> None:
    job = create_job(store, queue)
    store.start(job.id, "e1")
    store.report_progress(job.id, "e1", 12, 20, Phase.SAMPLING)
    store.report_progress(job.id, "e1", 3, 20, Phase.SAMPLING)
    shown = store.get(job.id)
    assert shown is not None
    assert shown.step == 12


def test_a_queued_job_is_cancelled_at_once_and_leaves_the_queue(
    store: JobStore, queue: Queue, services: Services
) -> None:
    job, other = create_job(store, queue), create_job(store, queue)
    cancelled = store.cancel(job.id)
    assert cancelled is not None
    assert cancelled.state is JobState.CANCELLED
    assert cancelled.completed_at is not None
    assert queue.job_ids == [other.id]
    assert not services.redis.exists(f"rq:job:{job.id}")
    assert store.start(job.id, "e1") is None


def test_a_running_job_sees_the_cancellation_and_ends(store: JobStore, queue: Queue) -> None:
    job = create_job(store, queue)
    store.start(job.id, "e1")
    asked = store.cancel(job.id)
    assert asked is not None
    assert (asked.state, asked.cancel_requested) == (JobState.RUNNING, True)
    assert store.report_progress(job.id, "e1", 1, 20, Phase.SAMPLING) is LeaseReply.CANCEL
    assert store.finish_cancel(job.id, "e1")
    stopped = store.get(job.id)
    assert stopped is not None
    assert stopped.state is JobState.CANCELLED


def test_cancelling_an_ended_job_changes_nothing(store: JobStore, queue: Queue) -> None:
    job = create_job(store, queue)
    store.start(job.id, "e1")
    complete_job(store, job.id, "e1")
    before = store.get(job.id)
    assert store.cancel(job.id) == before
    assert store.get(job.id) == before


def test_a_job_without_a_worker_can_be_failed_from_outside(store: JobStore, queue: Queue) -> None:
    waiting, running = create_job(store, queue), create_job(store, queue)
    store.start(running.id, "dead")
    assert store.fail(waiting.id, None, ERROR)
    assert store.fail(running.id, None, ERROR)
    for job in (waiting, running):
        failed = store.get(job.id)
        assert failed is not None
        assert (failed.state, failed.error) == (JobState.FAILED, ERROR)
    assert not store.fail(waiting.id, None, JobError(code="other", message="Later."))


def test_a_deleted_job_leaves_nothing(store: JobStore, queue: Queue, services: Services) -> None:
    job = create_job(store, queue)
    assert store.delete(job.id, only_ended=True) is None
    store.start(job.id, "e1")
    assert store.delete(job.id, only_ended=True) is None
    complete_job(store, job.id, "e1")
    assert store.delete(job.id, only_ended=True) is Deletion.DELETED
    assert store.get(job.id) is None
    assert store.list() == ([], False)
    assert services.redis.exists(INDEX, job_key(job.id)) == 0
    assert services.redis.ttl(f"rq:job:{job.id}") > 0  # its worker was killed before it could close it


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["start", "progress", "complete", "fail", "requeue", "cancel", "finish_cancel"]),
        st.sampled_from(["e1", "e2"]),
    ),
    max_size=12,
)


@given(moves=CALLS)
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_calls_in_any_order_make_allowed_transitions_only(services: Services, moves: list[tuple[str, str]]) -> None:
    store = services.store
    job = create_job(store, generate_queue(services.redis, "demo"))
    before = job
    for move, who in moves:
        match move:
            case "start":
                store.start(job.id, who)
            case "progress":
                store.report_progress(job.id, who, random.randint(0, 20), 20, Phase.SAMPLING)
            case "complete":
                complete_job(store, job.id, who)
            case "fail":
                store.fail(job.id, who, ERROR)
            case "requeue":
                store.requeue(job, who)
            case "cancel":
                store.cancel(job.id)
            case _:
                store.finish_cancel(job.id, who)
        after = store.get(job.id)
        assert after is not None
        assert after.state is before.state or after.state in ALLOWED_TRANSITIONS[before.state]
        assert after.progress >= before.progress
        if before.state.is_terminal:
            assert after == before
        before = after
