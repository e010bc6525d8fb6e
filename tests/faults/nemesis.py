"""The faults, and the order in which a seed brings them. Each breaks one thing, waits, and mends it.

Without root and on one machine some stand for others: a full disk of Redis is `maxmemory` with noeviction (the same
refusals, by CONFIG SET); a worker's full disk is a limit on the size of its files (prlimit RLIMIT_FSIZE); a clock that
is wrong is a shifted time.time in that process (tests/skewed_clock.py).
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from redis.exceptions import RedisError
from rq import Worker

from service.jobs.model import Callback, Job, JobState, Phase
from service.jobs.rq_queues import generate_queue
from service.jobs.store import ACTIVE, job_key
from tests.factories import make_generation
from tests.faults.cluster import COURIERS, LEASE_S, MAINTENANCES, MODULES, WORKERS, House, Process
from tests.faults.history import History
from tests.faulty_proxy import Fault

PATIENCE_S = 8.0  # how long a fault waits for somebody to hit
BUSY_S = 2.0  # how long one lasts that passes
OVERLAP = 0.35  # how often the next fault comes while the last one lasts
SKEW_S = 60.0
FULL_BYTES = 2048
POISONS = ("generation", "execution_id", "step", "created_at", "callback")


class Planned(NamedTuple):
    """`chance`: the seed of everything that this fault leaves to chance."""

    number: int
    kind: str
    pause_s: float
    overlaps: bool
    chance: str


class Missed(Exception):
    """There was nothing to break."""


@dataclass
class Blow:
    """One fault under way: what it may use, and what it says of itself."""

    house: House
    chance: random.Random
    note: Callable[..., None]

    def process(self, names: tuple[str, ...]) -> Process:
        return self.house.processes[self.chance.choice(names)]

    def worker_at_work(self) -> tuple[Process, str]:
        """A worker and the job that it has."""
        first = self.chance.sample(WORKERS, len(WORKERS))

        def found() -> tuple[Process, str] | None:
            at_work = self._at_work()
            for process in (self.house.processes[name] for name in first):
                if process.is_running and (job_id := at_work.get(process.handle.pid)):
                    return process, job_id
            return None

        return self.wait(found)

    def job(self, state: JobState, fits: Callable[[Job], bool] = lambda _: True) -> Job:
        def found() -> Job | None:
            for job_id in sorted(self._redis.smembers(ACTIVE)):
                with suppress(ValueError):
                    job = self.house.services.store.get(job_id.decode())
                    if job and job.state is state and fits(job):
                        return job
            return None

        return self.wait(found)

    def wait(self, what: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with suppress(RedisError):
                if (found := what()) is not None:
                    return found
            time.sleep(0.02)
        raise Missed

    @property
    def _redis(self) -> Any:
        return self.house.redis

    def _at_work(self) -> dict[int, str]:
        """Process ids of workers -> their jobs, by RQ's books."""
        workers: list[Any] = Worker.all(connection=self._redis, serializer="json")
        return {worker.pid: job_id for worker in workers if (job_id := worker.get_current_job_id())}


Act = Callable[[Blow], Iterator[float]]  # breaks, yields how long it lasts, mends


class Kind(NamedTuple):
    """Of what touches the same `place` only one happens at a time."""

    place: str
    act: Act


# -- workers


def _hit_worker(number: signal.Signals, *, child: bool = False, again: bool = False) -> Act:
    def act(blow: Blow) -> Iterator[float]:
        process, job_id = blow.worker_at_work()
        blow.note(target=process.name, victim=job_id)
        if child:
            pid = process.child
            if pid is None:
                raise Missed
            os.kill(pid, number)
        else:
            process.send(number)
        if again:
            time.sleep(blow.chance.uniform(0.05, 1.2))
            process.send(number)
        yield 0.0

    return act


def _freeze(*, child_too: bool) -> Act:
    """Longer than the lease: somebody else gets the job, then this one wakes up."""

    def act(blow: Blow) -> Iterator[float]:
        process, job_id = blow.worker_at_work()
        blow.note(target=process.name, victim=job_id)
        frozen = [process.handle.pid, *([pid] if child_too and (pid := process.child) else [])]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        yield LEASE_S + blow.chance.uniform(1.0, 3.0)
        for pid in frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    return act


def _fill_disk(blow: Blow) -> Iterator[float]:
    process, job_id = blow.worker_at_work()
    pid = process.child
    if pid is None:
        raise Missed
    blow.note(target=process.name, victim=job_id)
    _limit_files(pid, FULL_BYTES)
    yield BUSY_S
    _limit_files(pid, resource.RLIM_INFINITY)


def _limit_files(pid: int, size_bytes: int) -> None:
    with suppress(ProcessLookupError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, hard))


def _set_clock_wrong(blow: Blow) -> Iterator[float]:
    process = blow.process((*WORKERS, *MAINTENANCES, *COURIERS))
    blow.note(target=process.name)
    blow.house.restart(process.name, clock_s=blow.chance.choice((-SKEW_S, SKEW_S)))
    yield 3 * BUSY_S
    blow.house.restart(process.name, clock_s=0.0)


def _kill_one_of(*names: str) -> Act:
    def act(blow: Blow) -> Iterator[float]:
        process = blow.process(names)
        blow.note(target=process.name)
        process.send(signal.SIGKILL)
        yield 0.0

    return act


# -- Redis and the way to it


def _kill_redis(blow: Blow) -> Iterator[float]:
    blow.house.valkey.kill()
    yield blow.chance.uniform(0.2, BUSY_S)
    blow.house.valkey.start()


def _kill_redis_at_the_end(blow: Blow) -> Iterator[float]:
    """A job is finished while it is away, for longer than the lease."""
    job = blow.job(JobState.RUNNING, lambda job: job.phase is Phase.UPLOADING or job.total_steps - job.step <= 2)
    blow.note(victim=job.id)
    blow.house.valkey.kill()
    yield LEASE_S + blow.chance.uniform(0.5, 2.0)
    blow.house.valkey.start()


def _fill_redis(blow: Blow) -> Iterator[float]:
    redis: Any = blow.house.redis
    redis.config_set("maxmemory", 1)
    yield blow.chance.choice((BUSY_S, LEASE_S + 2))
    redis.config_set("maxmemory", 0)


def _slow_down(blow: Blow) -> Iterator[float]:
    for name in MODULES:
        blow.house.wires.delay(name, blow.chance.uniform(0.05, 0.4))
    yield 2 * BUSY_S
    for name in MODULES:
        blow.house.wires.mend(name)


def _silence(*, one_worker: bool) -> Act:
    def act(blow: Blow) -> Iterator[float]:
        names: list[str] = list(MODULES)
        if one_worker:
            process, job_id = blow.worker_at_work()
            names = [process.name]
            blow.note(target=process.name, victim=job_id)
        is_cut = blow.chance.random() < 0.5  # else what was sent arrives late
        for name in names:
            blow.house.wires.silence(name)
        yield LEASE_S + blow.chance.uniform(0.0, 2.0)
        for name in names:
            if is_cut:
                blow.house.wires.cut(name)
            blow.house.wires.mend(name)

    return act


def _cut(blow: Blow) -> Iterator[float]:
    for name in MODULES:
        blow.house.wires.cut(name)
    yield 0.0


# -- the queue


def _push_twice(blow: Blow) -> Iterator[float]:
    job = blow.job(JobState.RUNNING)
    blow.note(victim=job.id)
    redis: Any = blow.house.redis
    redis.lpush(generate_queue(redis, "demo").key, job.id)
    yield 0.0


def _lose_entry(blow: Blow) -> Iterator[float]:
    redis: Any = blow.house.redis
    job = blow.job(JobState.QUEUED)
    blow.note(victim=job.id)
    redis.lrem(generate_queue(redis, "demo").key, 0, job.id)
    redis.delete(f"rq:job:{job.id}")
    yield 0.0


def _poison(blow: Blow) -> Iterator[float]:
    """A job of its own; what is told here exempts it from what cannot be promised of it."""
    house = blow.house
    generation = make_generation(num_inference_steps=blow.chance.randint(1, 30))
    job = Job.new(generation, callback=Callback(url=house.receiver.url))
    name = blow.chance.choice(POISONS)
    blow.note(poisoned=job.id, field=name)
    house.services.store.create(job, generate_queue(house.redis, "demo"))
    time.sleep(blow.chance.choice((0.0, 1.0)))
    redis: Any = house.redis
    if redis.exists(job_key(job.id)):
        redis.hset(job_key(job.id), name, blow.chance.choice(("garbage", json.dumps({"no": "sense"}))))
    yield 0.0


# -- storage, receiver


def _break_storage(fault: Fault, *seconds: float) -> Act:
    def act(blow: Blow) -> Iterator[float]:
        blow.house.buckets.break_with(fault)
        yield blow.chance.choice(seconds)
        blow.house.buckets.mend()

    return act


def _upset_receiver(mood: Any) -> Act:
    def act(blow: Blow) -> Iterator[float]:
        blow.house.receiver.mood = mood
        yield 2 * BUSY_S
        blow.house.receiver.mood = "up"

    return act


KINDS: dict[str, Kind] = {
    "kill -9 child": Kind("worker", _hit_worker(signal.SIGKILL, child=True)),
    "kill -9 parent": Kind("worker", _hit_worker(signal.SIGKILL)),
    "SIGTERM": Kind("worker", _hit_worker(signal.SIGTERM)),
    "SIGTERM twice": Kind("worker", _hit_worker(signal.SIGTERM, again=True)),
    "frozen parent": Kind("worker", _freeze(child_too=False)),
    "frozen worker": Kind("worker", _freeze(child_too=True)),
    "scratch disk full": Kind("worker", _fill_disk),
    "clock skew": Kind("clock", _set_clock_wrong),
    "kill -9 API": Kind("api", _kill_one_of("api")),
    "kill -9 maintenance": Kind("clock", _kill_one_of(*MAINTENANCES)),
    "kill -9 courier": Kind("clock", _kill_one_of(*COURIERS)),
    "Redis killed": Kind("redis", _kill_redis),
    "Redis away at a job's end": Kind("redis", _kill_redis_at_the_end),
    "Redis full": Kind("redis", _fill_redis),
    "Redis slow": Kind("wires", _slow_down),
    "Redis silent": Kind("wires", _silence(one_worker=False)),
    "Redis silent to a worker": Kind("wires", _silence(one_worker=True)),
    "Redis hangs up": Kind("wires", _cut),
    "job queued twice": Kind("queue", _push_twice),
    "queue entry lost": Kind("queue", _lose_entry),
    "poisoned record": Kind("queue", _poison),
    "S3 down": Kind("storage", _break_storage("drop", BUSY_S, 3 * BUSY_S)),
    "S3 hangs": Kind("storage", _break_storage("hang", BUSY_S, 4 * BUSY_S)),
    "S3 refuses (503)": Kind("storage", _break_storage("503", BUSY_S, 3 * BUSY_S)),
    "S3 corrupts": Kind("storage", _break_storage("flip", BUSY_S, 3 * BUSY_S)),
    "receiver down": Kind("receiver", _upset_receiver("down")),
    "receiver slow": Kind("receiver", _upset_receiver("slow")),
    "receiver says 410": Kind("receiver", _upset_receiver("gone")),
}


def draw(seed: int, count: int, kinds: Sequence[str] = ()) -> list[Planned]:
    """The same for the same seed, and of any number of faults all kinds (or these only) come nearly equally often."""
    chance = random.Random(seed)
    bag: list[str] = []
    plan: list[Planned] = []
    for number in range(count):
        if not bag:
            bag = chance.sample(list(kinds or KINDS), len(kinds or KINDS))
        pause_s, overlaps = chance.uniform(0.2, 1.5), chance.random() < OVERLAP
        plan.append(Planned(number, bag.pop(), pause_s, overlaps, f"{seed}.{number}"))
    return plan


@dataclass
class Nemesis:
    house: House
    history: History
    plan: list[Planned]
    may_strike: Callable[[float], bool]  # whether the jobs are so far, 0 to 1: the faults are spread over them
    progress: float = 0.0  # 0 to 1
    _places: dict[str, threading.Lock] = field(init=False)

    def __post_init__(self) -> None:
        self._places = {kind.place: threading.Lock() for kind in KINDS.values()}

    def rage(self, stopping: threading.Event) -> None:
        """All of the plan, or until `stopping`; in the end everything is mended."""
        threads: list[threading.Thread] = []
        for planned in self.plan:
            while not stopping.wait(planned.pause_s) and not self.may_strike(self.progress):
                pass
            if stopping.is_set():
                break
            thread = threading.Thread(target=self._strike, args=(planned,), name=planned.kind, daemon=True)
            thread.start()
            threads.append(thread)
            if not planned.overlaps:
                thread.join()
            self.progress = (planned.number + 1) / len(self.plan)
        for thread in threads:
            thread.join()
        self.progress = 1.0

    def _strike(self, planned: Planned) -> None:
        kind = KINDS[planned.kind]
        with self._places[kind.place]:
            self._act(planned, kind.act)

    def _act(self, planned: Planned, act: Act) -> None:
        told: dict[str, Any] = {}
        what = {"number": planned.number, "kind": planned.kind}

        def note(**details: Any) -> None:
            told.update(details, at=round(time.monotonic(), 3))
            if "poisoned" in details:
                self.history.note("nemesis", "poisoned", id=details["poisoned"])

        steps = act(Blow(self.house, random.Random(planned.chance), note))
        try:
            lasts_s = next(steps)
        except (Missed, RedisError, ProcessLookupError) as e:
            self.history.note("nemesis", "missed", **what, why=type(e).__name__)
            return
        self.history.note("nemesis", "fault", **what, lasts_s=round(lasts_s, 2), **told)
        time.sleep(lasts_s)
        with suppress(RedisError):  # what a restart mends by itself
            next(steps, None)
        self.history.note("nemesis", "mended", **what, **told)
