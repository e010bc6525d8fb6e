"""Polls that arrive together share a read; an error reaches only the requests it concerns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from service.api.polls import BATCH_SIZE, PollBatcher
from service.jobs.record_reader import JobWithPosition
from tests.factories import make_job

JOBS = {job.id: job for job in (make_job() for _ in range(3))}


class Store:
    """Blocks every read until `gate` is set; `reads` holds the ids of each."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.reads: list[list[str]] = []
        self.gate = threading.Event()
        if is_open:
            self.gate.set()

    def get_many_with_positions(self, ids: Sequence[str]) -> list[JobWithPosition | ValueError | None]:
        self.reads.append(list(ids))
        assert self.gate.wait(60)
        if "broken" in ids:
            raise ConnectionError("unreachable")
        return [self._show(video_id) for video_id in ids]

    def _show(self, video_id: str) -> JobWithPosition | ValueError | None:
        if video_id == "damaged":
            return ValueError("the record cannot be read")
        return (JOBS[video_id], len(self.reads)) if video_id in JOBS else None


async def first_read(store: Store) -> None:
    while not store.reads:
        await asyncio.sleep(0.01)


def test_polls_that_arrive_during_a_read_share_the_next_one() -> None:
    store = Store(is_open=False)

    async def poll() -> list[JobWithPosition | None]:
        polls = PollBatcher(store.get_many_with_positions)
        first, *others = JOBS
        tasks = [asyncio.create_task(polls.read(first))]
        await first_read(store)
        tasks += [asyncio.create_task(polls.read(video_id)) for video_id in (*others, "video_x", first)]
        await asyncio.sleep(0)
        store.gate.set()
        return await asyncio.gather(*tasks)

    results = asyncio.run(poll())
    first, *others = JOBS
    assert store.reads == [[first], [*others, "video_x", first]]
    assert results == [(JOBS[first], 1), *((JOBS[one], 2) for one in others), None, (JOBS[first], 2)]


def test_batches_are_limited() -> None:
    store = Store(is_open=False)

    async def poll() -> None:
        polls = PollBatcher(store.get_many_with_positions)
        tasks = [asyncio.create_task(polls.read("video_x")) for _ in range(2 * BATCH_SIZE + 1)]
        await first_read(store)
        store.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(poll())
    assert [len(ids) for ids in store.reads] == [BATCH_SIZE, BATCH_SIZE, 1]


def test_a_failed_read_reaches_its_own_polls_and_the_next_read_works() -> None:
    store = Store()

    async def poll() -> list[object]:
        polls = PollBatcher(store.get_many_with_positions)
        together = await asyncio.gather(polls.read("broken"), polls.read("video_x"), return_exceptions=True)
        return [*together, await polls.read(next(iter(JOBS)))]

    broken, other, later = asyncio.run(poll())
    assert isinstance(broken, ConnectionError)
    assert isinstance(other, ConnectionError)
    assert later == (next(iter(JOBS.values())), 2)


def test_a_damaged_record_affects_its_own_poll_only() -> None:
    store = Store()

    async def poll() -> list[object]:
        polls = PollBatcher(store.get_many_with_positions)
        return await asyncio.gather(*map(polls.read, (*JOBS, "damaged")), return_exceptions=True)

    *sound, damaged = asyncio.run(poll())
    assert store.reads == [[*JOBS, "damaged"]], "one read"
    assert sound == [(job, 1) for job in JOBS.values()]
    assert isinstance(damaged, ValueError)


def test_a_client_that_disconnects_does_not_affect_the_others() -> None:
    store = Store(is_open=False)

    async def poll() -> JobWithPosition | None:
        polls = PollBatcher(store.get_many_with_positions)
        leaving, staying = (asyncio.create_task(polls.read(video_id)) for video_id in list(JOBS)[:2])
        await first_read(store)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        store.gate.set()
        return await staying

    assert asyncio.run(poll()) == (list(JOBS.values())[1], 1)


def test_every_event_loop_has_separate_batches() -> None:
    store = Store()
    polls = PollBatcher(store.get_many_with_positions)
    for _ in range(2):
        assert asyncio.run(polls.read("video_x")) is None
    assert len(store.reads) == 2
