"""Every kind of fault. Each breaks one thing, lasts for a while and repairs it.

Without root and on one machine, some faults are simulated: full Redis memory by `maxmemory` with noeviction, a full
disk of the queue or of a worker by a file size limit (prlimit RLIMIT_FSIZE), and a wrong clock by a shifted time.time
(tests/skewed_clock.py).
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from service.jobs.model import JobState, Phase
from tests.faults.client_faults import flood, revoke_key
from tests.faults.cluster import DISPATCHERS, LEASE_S, MAINTENANCES, MODULES, WORKERS
from tests.faults.injection import SHORT_S, FaultKind, Inject, Injection, NoTarget
from tests.faults.queue_faults import corrupt_record, lose_entry, push_twice, write_old_record
from tests.faults.receiver import Mode
from tests.faults.sentinel_queue import LEAST, SentinelQueue
from tests.faulty_proxy import Fault
from tests.processes import clean_environment

SKEW_S = 60.0
FULL_BYTES = 2048


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
    injection.cluster.embedded.kill()
    yield injection.random.uniform(0.2, SHORT_S)
    injection.cluster.embedded.start()


def _kill_redis_at_completion(injection: Injection) -> Iterator[float]:
    """A job completes while Redis is down for longer than the lease."""
    job = injection.job(JobState.RUNNING, lambda job: job.phase is Phase.UPLOADING or job.total_steps - job.step <= 2)
    injection.record(victim=job.id)
    injection.cluster.embedded.kill()
    yield LEASE_S + injection.random.uniform(0.5, 2.0)
    injection.cluster.embedded.start()


def _kill_embedded_server(injection: Injection) -> Iterator[float]:
    """Nothing but the product brings it back."""
    injection.cluster.embedded.kill_server()
    yield SHORT_S
    injection.cluster.embedded.wait_until_ready()


def _fill_disk_of_queue(injection: Injection) -> Iterator[float]:
    """The server ends at its first write, again and again, until there is space."""
    injection.cluster.embedded.limit_files(FULL_BYTES)
    yield injection.random.uniform(SHORT_S, 2 * SHORT_S)
    injection.cluster.embedded.limit_files(None)
    injection.cluster.embedded.wait_until_ready()


def _start_second_up(injection: Injection) -> Iterator[float]:
    """On the folder of the running queue, from a shell; the checker wants it refused with a sentence."""
    yield 0.0
    command = (
        f'"{sys.executable}" -m service.cli up --port 0 --workers 0 --data "{injection.cluster.embedded.data_dir}"'
    )
    done = subprocess.run(
        ["/bin/sh", "-c", command], env=clean_environment(), capture_output=True, text=True, timeout=90, check=False
    )
    injection.record(exit_code=done.returncode, refused="is in use by another ivmix" in done.stderr)


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


def _kill_primary(injection: Injection) -> Iterator[float]:
    """Until the Sentinels have promoted a replica."""
    queue = injection.cluster.valkey
    if not isinstance(queue, SentinelQueue) or len(queue.living) <= LEAST:
        raise NoTarget
    killed = queue.kill_primary()
    yield 0.0
    queue.wait_for_promotion(killed)


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
    "embedded server killed": FaultKind("redis", _kill_embedded_server),
    "disk full under the queue": FaultKind("redis", _fill_disk_of_queue),
    "second ivmix up": FaultKind("second up", _start_second_up),
    "Redis full": FaultKind("redis", _fill_redis),
    "Redis slow": FaultKind("redis proxies", _slow_redis),
    "Redis silent": FaultKind("redis proxies", _silence_redis(one_worker=False)),
    "Redis silent to a worker": FaultKind("redis proxies", _silence_redis(one_worker=True)),
    "Redis connections cut": FaultKind("redis proxies", _cut_connections),
    "job queued twice": FaultKind("queue", push_twice),
    "queue entry lost": FaultKind("queue", lose_entry),
    "corrupted record": FaultKind("queue", corrupt_record),
    "record of 0.1": FaultKind("queue", write_old_record),
    "key revoked": FaultKind("keys", revoke_key),
    "one tenant floods": FaultKind("api", flood),
    "S3 down": FaultKind("storage", _break_storage("drop", SHORT_S, 3 * SHORT_S)),
    "S3 hangs": FaultKind("storage", _break_storage("hang", SHORT_S, 4 * SHORT_S)),
    "S3 refuses (503)": FaultKind("storage", _break_storage("503", SHORT_S, 3 * SHORT_S)),
    "S3 corrupts": FaultKind("storage", _break_storage("flip", SHORT_S, 3 * SHORT_S)),
    "receiver down": FaultKind("receiver", _break_receiver("down")),
    "receiver slow": FaultKind("receiver", _break_receiver("slow")),
    "receiver answers 410": FaultKind("receiver", _break_receiver("gone")),
}

# Kinds of a run with Sentinels: what does not need the embedded server or the proxies in front of it.
FAILOVER = {"primary killed": FaultKind("redis", _kill_primary)}
ALL_KINDS = KINDS | FAILOVER
WITH_SENTINELS = (
    *FAILOVER,
    *(name for name, kind in KINDS.items() if kind.target not in ("redis", "redis proxies", "second up", "queue")),
)
