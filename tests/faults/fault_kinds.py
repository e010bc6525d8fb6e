"""Every kind of fault. Each breaks one thing, lasts for a while and repairs it.

Without root and on one machine, some faults are simulated: a full Redis disk by `maxmemory` with noeviction (Redis
refuses the same commands), a worker's full disk by a file size limit (prlimit RLIMIT_FSIZE), and a wrong clock by a
shifted time.time (tests/skewed_clock.py).
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from redis.exceptions import RedisError
from rq import Worker

from service.jobs.keys import ACTIVE, job_key
from service.jobs.model import Callback, Job, JobState, Phase
from service.jobs.rq_queues import generate_queue
from tests.factories import make_generation
from tests.faults.cluster import DISPATCHERS, LEASE_S, MAINTENANCES, MODULES, WORKERS, Cluster, Process
from tests.faults.receiver import Mode
from tests.faulty_proxy import Fault

TARGET_TIMEOUT_S = 8.0  # how long a fault waits for something to break
SHORT_S = 2.0  # the duration of a short outage
SKEW_S = 60.0
FULL_BYTES = 2048
CORRUPTIBLE = ("generation", "execution_id", "step", "created_at", "callback")


class NoTarget(Exception):
    """There was nothing to break."""


@dataclass
class Injection:
    """One fault while it is injected. `record(...)` adds details to its line in the history."""

    cluster: Cluster
    random: random.Random
    record: Callable[..., None]

    def process(self, names: tuple[str, ...]) -> Process:
        return self.cluster.processes[self.random.choice(names)]

    def busy_worker(self) -> tuple[Process, str]:
        """A worker and the id of the job that it runs."""
        names = self.random.sample(WORKERS, len(WORKERS))

        def found() -> tuple[Process, str] | None:
            jobs = self._current_jobs()
            for process in (self.cluster.processes[name] for name in names):
                if process.is_running and (job_id := jobs.get(process.handle.pid)):
                    return process, job_id
            return None

        return self.wait(found)

    def job(self, state: JobState, matches: Callable[[Job], bool] = lambda _: True) -> Job:
        def found() -> Job | None:
            for job_id in sorted(self._redis.smembers(ACTIVE)):
                with suppress(ValueError):
                    job = self.cluster.services.store.get(job_id.decode())
                    if job and job.state is state and matches(job):
                        return job
            return None

        return self.wait(found)

    def wait(self, find: Callable[[], Any]) -> Any:
        """Poll until `find` returns something. Raises NoTarget after TARGET_TIMEOUT_S."""
        deadline = time.monotonic() + TARGET_TIMEOUT_S
        while time.monotonic() < deadline:
            with suppress(RedisError):
                if (found := find()) is not None:
                    return found
            time.sleep(0.02)
        raise NoTarget

    @property
    def _redis(self) -> Any:
        return self.cluster.redis

    def _current_jobs(self) -> dict[int, str]:
        """Process ids of workers -> their job, as RQ's worker records show it."""
        workers: list[Any] = Worker.all(connection=self._redis, serializer="json")
        return {worker.pid: job_id for worker in workers if (job_id := worker.get_current_job_id())}


Inject = Callable[[Injection], Iterator[float]]  # breaks, yields the duration in seconds, repairs


class FaultKind(NamedTuple):
    """Only one fault at a time affects the same `target`."""

    target: str
    inject: Inject


# -- workers


def _signal_worker(number: signal.Signals, *, child: bool = False, again: bool = False) -> Inject:
    def inject(injection: Injection) -> Iterator[float]:
        process, job_id = injection.busy_worker()
        injection.record(target=process.name, victim=job_id)
        if child:
            pid = process.child
            if pid is None:
                raise NoTarget
            os.kill(pid, number)
        else:
            process.send(number)
        if again:
            time.sleep(injection.random.uniform(0.05, 1.2))
            process.send(number)
        yield 0.0

    return inject


def _freeze(*, child_too: bool) -> Inject:
    """Longer than the lease: another worker gets the job, then this one wakes up."""

    def inject(injection: Injection) -> Iterator[float]:
        process, job_id = injection.busy_worker()
        injection.record(target=process.name, victim=job_id)
        frozen = [process.handle.pid, *([pid] if child_too and (pid := process.child) else [])]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        yield LEASE_S + injection.random.uniform(1.0, 3.0)
        for pid in frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    return inject


def _fill_disk(injection: Injection) -> Iterator[float]:
    process, job_id = injection.busy_worker()
    pid = process.child
    if pid is None:
        raise NoTarget
    injection.record(target=process.name, victim=job_id)
    _limit_file_size(pid, FULL_BYTES)
    yield SHORT_S
    _limit_file_size(pid, resource.RLIM_INFINITY)


def _limit_file_size(pid: int, size_bytes: int) -> None:
    with suppress(ProcessLookupError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, hard))


def _skew_clock(injection: Injection) -> Iterator[float]:
    process = injection.process((*WORKERS, *MAINTENANCES, *DISPATCHERS))
    injection.record(target=process.name)
    injection.cluster.restart(process.name, clock_s=injection.random.choice((-SKEW_S, SKEW_S)))
    yield 3 * SHORT_S
    injection.cluster.restart(process.name, clock_s=0.0)


def _kill_one_of(*names: str) -> Inject:
    def inject(injection: Injection) -> Iterator[float]:
        process = injection.process(names)
        injection.record(target=process.name)
        process.send(signal.SIGKILL)
        yield 0.0

    return inject


# -- Redis and the connections to it


def _kill_redis(injection: Injection) -> Iterator[float]:
    injection.cluster.valkey.kill()
    yield injection.random.uniform(0.2, SHORT_S)
    injection.cluster.valkey.start()


def _kill_redis_at_completion(injection: Injection) -> Iterator[float]:
    """A job completes while Redis is down for longer than the lease."""
    job = injection.job(JobState.RUNNING, lambda job: job.phase is Phase.UPLOADING or job.total_steps - job.step <= 2)
    injection.record(victim=job.id)
    injection.cluster.valkey.kill()
    yield LEASE_S + injection.random.uniform(0.5, 2.0)
    injection.cluster.valkey.start()


def _fill_redis(injection: Injection) -> Iterator[float]:
    redis: Any = injection.cluster.redis
    redis.config_set("maxmemory", 1)
    yield injection.random.choice((SHORT_S, LEASE_S + 2))
    redis.config_set("maxmemory", 0)


def _slow_redis(injection: Injection) -> Iterator[float]:
    for name in MODULES:
        injection.cluster.redis_proxies.delay(name, injection.random.uniform(0.05, 0.4))
    yield 2 * SHORT_S
    for name in MODULES:
        injection.cluster.redis_proxies.repair(name)


def _silence_redis(*, one_worker: bool) -> Inject:
    def inject(injection: Injection) -> Iterator[float]:
        names: list[str] = list(MODULES)
        if one_worker:
            process, job_id = injection.busy_worker()
            names = [process.name]
            injection.record(target=process.name, victim=job_id)
        is_cut = injection.random.random() < 0.5  # otherwise data that was sent arrives late
        for name in names:
            injection.cluster.redis_proxies.silence(name)
        yield LEASE_S + injection.random.uniform(0.0, 2.0)
        for name in names:
            if is_cut:
                injection.cluster.redis_proxies.cut(name)
            injection.cluster.redis_proxies.repair(name)

    return inject


def _cut_connections(injection: Injection) -> Iterator[float]:
    for name in MODULES:
        injection.cluster.redis_proxies.cut(name)
    yield 0.0


# -- the queue


def _push_twice(injection: Injection) -> Iterator[float]:
    job = injection.job(JobState.RUNNING)
    injection.record(victim=job.id)
    redis: Any = injection.cluster.redis
    redis.lpush(generate_queue(redis, "demo").key, job.id)
    yield 0.0


def _lose_entry(injection: Injection) -> Iterator[float]:
    redis: Any = injection.cluster.redis
    job = injection.job(JobState.QUEUED)
    injection.record(victim=job.id)
    redis.lrem(generate_queue(redis, "demo").key, 0, job.id)
    redis.delete(f"rq:job:{job.id}")
    yield 0.0


def _corrupt_record(injection: Injection) -> Iterator[float]:
    """Submit a job and corrupt its record. The checker exempts it from promises that its record can no longer keep."""
    cluster = injection.cluster
    generation = make_generation(num_inference_steps=injection.random.randint(1, 30))
    job = Job.new(generation, callback=Callback(url=cluster.receiver.url))
    name = injection.random.choice(CORRUPTIBLE)
    injection.record(corrupted=job.id, field=name)
    cluster.services.store.create(job, generate_queue(cluster.redis, "demo"))
    time.sleep(injection.random.choice((0.0, 1.0)))
    redis: Any = cluster.redis
    if redis.exists(job_key(job.id)):
        redis.hset(job_key(job.id), name, injection.random.choice(("garbage", json.dumps({"no": "sense"}))))
    yield 0.0


# -- storage, webhook receiver


def _break_storage(fault: Fault, *seconds: float) -> Inject:
    def inject(injection: Injection) -> Iterator[float]:
        injection.cluster.s3_proxy.break_with(fault)
        yield injection.random.choice(seconds)
        injection.cluster.s3_proxy.repair()

    return inject


def _break_receiver(mode: Mode) -> Inject:
    def inject(injection: Injection) -> Iterator[float]:
        injection.cluster.receiver.mode = mode
        yield 2 * SHORT_S
        injection.cluster.receiver.mode = "up"

    return inject


KINDS: dict[str, FaultKind] = {
    "kill -9 child": FaultKind("worker", _signal_worker(signal.SIGKILL, child=True)),
    "kill -9 parent": FaultKind("worker", _signal_worker(signal.SIGKILL)),
    "SIGTERM": FaultKind("worker", _signal_worker(signal.SIGTERM)),
    "SIGTERM twice": FaultKind("worker", _signal_worker(signal.SIGTERM, again=True)),
    "frozen parent": FaultKind("worker", _freeze(child_too=False)),
    "frozen worker": FaultKind("worker", _freeze(child_too=True)),
    "scratch disk full": FaultKind("worker", _fill_disk),
    "clock skew": FaultKind("clock", _skew_clock),
    "kill -9 API": FaultKind("api", _kill_one_of("api")),
    "kill -9 maintenance": FaultKind("clock", _kill_one_of(*MAINTENANCES)),
    "kill -9 dispatcher": FaultKind("clock", _kill_one_of(*DISPATCHERS)),
    "Redis killed": FaultKind("redis", _kill_redis),
    "Redis down at completion": FaultKind("redis", _kill_redis_at_completion),
    "Redis full": FaultKind("redis", _fill_redis),
    "Redis slow": FaultKind("redis proxies", _slow_redis),
    "Redis silent": FaultKind("redis proxies", _silence_redis(one_worker=False)),
    "Redis silent to a worker": FaultKind("redis proxies", _silence_redis(one_worker=True)),
    "Redis connections cut": FaultKind("redis proxies", _cut_connections),
    "job queued twice": FaultKind("queue", _push_twice),
    "queue entry lost": FaultKind("queue", _lose_entry),
    "corrupted record": FaultKind("queue", _corrupt_record),
    "S3 down": FaultKind("storage", _break_storage("drop", SHORT_S, 3 * SHORT_S)),
    "S3 hangs": FaultKind("storage", _break_storage("hang", SHORT_S, 4 * SHORT_S)),
    "S3 refuses (503)": FaultKind("storage", _break_storage("503", SHORT_S, 3 * SHORT_S)),
    "S3 corrupts": FaultKind("storage", _break_storage("flip", SHORT_S, 3 * SHORT_S)),
    "receiver down": FaultKind("receiver", _break_receiver("down")),
    "receiver slow": FaultKind("receiver", _break_receiver("slow")),
    "receiver answers 410": FaultKind("receiver", _break_receiver("gone")),
}
