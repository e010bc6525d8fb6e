"""Lists of jobs, page by page, and positions in the queue."""

from __future__ import annotations

import pytest
from rq import Queue

from service.jobs.job_errors import RECORD_DAMAGED
from service.jobs.keys import job_key
from service.jobs.model import JobState
from service.jobs.store import JobStore
from service.wiring import Services
from tests.factories import create_job


def test_a_damaged_record_does_not_hide_the_others(store: JobStore, queue: Queue, services: Services) -> None:
    damaged, sound = (create_job(store, queue) for _ in range(2))
    services.redis.hset(job_key(damaged.id), "generation", "garbage")
    assert [job.id for job in store.list()[0]] == [sound.id, damaged.id]
    before, broken, after = store.get_many_with_positions([sound.id, damaged.id, sound.id])
    assert (before, after) == ((sound, 1), (sound, 1))
    assert broken is not None
    assert (broken[0].id, broken[0].state, broken[0].error) == (damaged.id, JobState.FAILED, RECORD_DAMAGED)
    assert store.get_with_position(damaged.id) == broken
    with pytest.raises(ValueError, match="Expecting value"):
        store.get(damaged.id)  # what a worker reads


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_pages_put_together_are_the_whole_list(store: JobStore, queue: Queue, order: str, limit: int) -> None:
    expected = [create_job(store, queue).id for _ in range(6)]
    if order == "desc":
        expected.reverse()
    found: list[str] = []
    after, more = None, True
    while more:
        page, more = store.list(limit=limit, order=order, after=after)  # type: ignore[arg-type]  # parametrized
        found += [job.id for job in page]
        after = found[-1]
    assert found == expected


def test_a_page_can_start_after_a_job_that_was_deleted(store: JobStore, queue: Queue) -> None:
    first, second, third = (create_job(store, queue) for _ in range(3))
    store.cancel(second.id)
    store.delete(second.id)
    assert store.list(order="asc", after=second.id) == ([third], False)
    assert store.list(order="desc", after=second.id) == ([first], False)


def test_a_page_of_nothing_is_empty(store: JobStore, queue: Queue) -> None:
    create_job(store, queue)
    assert store.list(limit=0) == ([], True)


def test_the_position_counts_the_jobs_ahead(store: JobStore, queue: Queue) -> None:
    jobs = [create_job(store, queue) for _ in range(3)]
    assert [store.get_with_position(job.id) for job in jobs] == [(jobs[0], 0), (jobs[1], 1), (jobs[2], 2)]
    store.cancel(jobs[0].id)
    assert store.get_with_position(jobs[2].id) == (jobs[2], 1)
    queue.connection.lpop(queue.key)  # taken by a worker, not started yet
    assert store.get_with_position(jobs[1].id) == (jobs[1], 0)
    running = store.start(jobs[1].id, "e1")
    assert running is not None
    assert store.get_with_position(running.id) == (running, None)
    assert store.get_with_position("video_x") is None
