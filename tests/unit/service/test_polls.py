"""Who asks together is answered together; what goes wrong is told to whom it concerns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from service.api.polls import AT_ONCE, Polls
from service.jobs.store import Shown
from tests.factories import make_job

JOBS = {job.id: job for job in (make_job() for _ in range(3))}


class Store:
    """Answers when it is let; `asked` are the ids of every look-up."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.asked: list[list[str]] = []
        self.gate = threading.Event()
        if is_open:
            self.gate.set()

    def show_many(self, ids: Sequence[str]) -> list[Shown | ValueError | None]:
        self.asked.append(list(ids))
        assert self.gate.wait(60)
        if "broken" in ids:
            raise ConnectionError("away")
        return [self._show(video_id) for video_id in ids]

    def _show(self, video_id: str) -> Shown | ValueError | None:
        if video_id == "damaged":
            return ValueError("the record cannot be read")
        return (JOBS[video_id], len(self.asked)) if video_id in JOBS else None


async def under_way(store: Store) -> None:
    while not store.asked:
        await asyncio.sleep(0.01)


def test_what_arrives_during_a_look_up_is_in_the_next_one() -> None:
    store = Store(is_open=False)

    async def poll() -> list[Shown | None]:
        polls = Polls(store.show_many)
        first, *others = JOBS
        asked = [asyncio.create_task(polls.show(first))]
        await under_way(store)
        asked += [asyncio.create_task(polls.show(video_id)) for video_id in (*others, "video_x", first)]
        await asyncio.sleep(0)
        store.gate.set()
        return await asyncio.gather(*asked)

    answers = asyncio.run(poll())
    first, *others = JOBS
    assert store.asked == [[first], [*others, "video_x", first]]
    assert answers == [(JOBS[first], 1), *((JOBS[one], 2) for one in others), None, (JOBS[first], 2)]


def test_one_look_up_is_not_asked_for_too_many() -> None:
    store = Store(is_open=False)

    async def poll() -> None:
        polls = Polls(store.show_many)
        asked = [asyncio.create_task(polls.show("video_x")) for _ in range(2 * AT_ONCE + 1)]
        await under_way(store)
        store.gate.set()
        await asyncio.gather(*asked)

    asyncio.run(poll())
    assert [len(ids) for ids in store.asked] == [AT_ONCE, AT_ONCE, 1]


def test_a_look_up_that_fails_is_told_to_its_own_and_the_next_one_works() -> None:
    store = Store()

    async def poll() -> list[object]:
        polls = Polls(store.show_many)
        together = await asyncio.gather(polls.show("broken"), polls.show("video_x"), return_exceptions=True)
        return [*together, await polls.show(next(iter(JOBS)))]

    broken, beside, later = asyncio.run(poll())
    assert isinstance(broken, ConnectionError)
    assert isinstance(beside, ConnectionError)
    assert later == (next(iter(JOBS.values())), 2)


def test_a_damaged_record_is_told_to_its_own_client_only() -> None:
    store = Store()

    async def poll() -> list[object]:
        polls = Polls(store.show_many)
        return await asyncio.gather(*map(polls.show, (*JOBS, "damaged")), return_exceptions=True)

    *sound, damaged = asyncio.run(poll())
    assert store.asked == [[*JOBS, "damaged"]], "one look-up"
    assert sound == [(job, 1) for job in JOBS.values()]
    assert isinstance(damaged, ValueError)


def test_a_client_that_goes_away_leaves_the_others_their_answer() -> None:
    store = Store(is_open=False)

    async def poll() -> Shown | None:
        polls = Polls(store.show_many)
        leaving, staying = (asyncio.create_task(polls.show(video_id)) for video_id in list(JOBS)[:2])
        await under_way(store)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        store.gate.set()
        return await staying

    assert asyncio.run(poll()) == (list(JOBS.values())[1], 1)


def test_every_event_loop_has_look_ups_of_its_own() -> None:
    store = Store()
    polls = Polls(store.show_many)
    for _ in range(2):
        assert asyncio.run(polls.show("video_x")) is None
    assert len(store.asked) == 2
