"""`python -m benchmarks.scale_sim`: the overhead of the queue as workers are added.

Real: Valkey (`appendfsync always`), the job store, RQ, N worker processes, a maintenance process. Replayed: the GPU
seconds of each step (--times: measured ones), so that eight GPUs fit on a machine without any. All jobs, equally many
per worker, are created at once, and one client polls meanwhile. Prints a table; writes JSON with --json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.scale_table import Ceiling, Round, ceiling_table, table
from service.jobs.keys import INDEX, job_key, lease_key, owner_index, preview_key
from service.jobs.model import Generation, Job, JobState, Phase
from service.jobs.queue_and_waiting_time import queue_stats
from service.jobs.rq_queues import generate_queue
from service.jobs.sampler_settings import SamplerSettings
from service.process.embedded_valkey import EmbeddedValkey
from service.settings import Settings
from service.wiring import Services, open_services

PROMPT = "a red circle moving right on a teal background"
POLL_EVERY_S = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--jobs", type=int, default=6, help="per worker")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument(
        "--step-s", type=float, default=0.33, help="seconds per step; default: an H200, computed from FLOP"
    )
    parser.add_argument(
        "--times", type=Path, help="JSON list of measured seconds per step, instead of --steps and --step-s"
    )
    parser.add_argument("--idle-s", type=float, default=10.0, help="seconds for which idle workers are measured")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    steps_s = json.loads(arguments.times.read_text()) if arguments.times else [arguments.step_s] * arguments.steps
    script = {"encode_s": 0.1, "steps_s": steps_s, "decode_s": 0.6}
    rounds = [measured(workers, arguments.jobs, script, arguments.idle_s) for workers in arguments.workers]
    print(table(rounds, script))
    ceilings = ceiling()
    print(ceiling_table(ceilings))
    if arguments.json:
        found = {"rounds": [asdict(round) for round in rounds], "progress": [asdict(found) for found in ceilings]}
        arguments.json.write_text(json.dumps(found, indent=1))


def measured(workers: int, jobs_per_worker: int, script: Mapping[str, Any], idle_s: float) -> Round:
    """Run one round on a fresh server."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(Path(folder)) as url:
        settings = Settings(redis_url=url, data_dir=Path(folder), auth="off")
        services = open_services(settings)
        written = Path(folder) / "script.json"
        written.write_text(json.dumps(script))
        environment = {**_bare_environment(), "IVMIX_REDIS_URL": url, "IVMIX_DATA_DIR": folder}
        programs = [("service.maintenance",), *[("benchmarks.replay", str(written))] * workers]
        with running(programs, environment):
            _wait_for_workers(services, workers)
            redis: Any = services.redis
            before = Cost.of(redis)
            time.sleep(idle_s)
            idle = Cost.of(redis) - before
            found = _round(services, workers, jobs_per_worker, script, idle)
        services.close()
        return found


def _round(services: Services, workers: int, jobs_per_worker: int, script: Mapping[str, Any], idle: Cost) -> Round:
    redis: Any = services.redis
    poll = _cost_of_a_poll(services)

    count = workers * jobs_per_worker
    before = Cost.of(redis)
    jobs, creations = _create(services, count)
    polls = _poll_until_done(services, jobs)
    spent = Cost.of(redis) - before
    records = [job for job in (services.store.get(job.id) for job in jobs) if job is not None]
    assert [job.state for job in records] == [JobState.COMPLETED] * count, "a job was lost"
    began, ended = _times(records)
    makespan = max(ended) - min(began)
    networks_s, decode_s = script["encode_s"] + sum(script["steps_s"]), script["decode_s"]
    # The next job is sampled while a clip is decoded.
    ideal_s = jobs_per_worker * networks_s + decode_s
    gaps = sorted(_gaps(began, [end - decode_s for end in ended], workers))
    return Round(
        workers=workers,
        jobs=count,
        seconds=makespan,
        per_hour=3600 * count / makespan,
        of_ideal=ideal_s / makespan,
        gap_p50=_at(gaps, 0.5),
        gap_p95=_at(gaps, 0.95),
        create_p50=_at(creations, 0.5),
        create_p99=_at(creations, 0.99),
        poll_p50=_at(polls, 0.5),
        poll_p99=_at(polls, 0.99),
        commands_per_job=(spent.commands - len(polls) * poll.commands) / count,
        bytes_per_job=(spent.bytes - len(polls) * poll.bytes) / count,
        log_bytes_per_job=spent.log_bytes / count,
        memory_per_job=_memory(redis, records),
        cpu_per_job=(spent.cpu_s - len(polls) * poll.cpu_s) / count,
        idle_commands_per_s=idle.commands / idle.seconds,
        idle_bytes_per_s=idle.bytes / idle.seconds,
    )


def ceiling(together: Sequence[int] = (1, 10, 100), seconds: float = 3.0) -> list[Ceiling]:
    """The rate at which one Redis accepts progress reports. A pipeline simulates simultaneous workers."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(Path(folder)) as url:
        services = open_services(Settings(redis_url=url, data_dir=Path(folder), auth="off"))
        store, redis = services.store, services.redis
        job = store.create(_job(), generate_queue(redis, "demo"))
        assert store.start(job.id, "execution") is not None
        found = [_ceiling(services, job, count, seconds) for count in together]
        services.close()
        return found


def _ceiling(services: Services, job: Job, together: int, seconds: float) -> Ceiling:
    redis: Any = services.redis
    script = services.store._renew_lease_script  # what `report_progress` runs; the method cannot be pipelined
    progress = [json.dumps("execution"), 45_000, "7", "50", json.dumps(Phase.SAMPLING)]
    before, sent = Cost.of(redis), 0
    while time.monotonic() < before.seconds + seconds:
        with redis.pipeline(transaction=False) as pipe:
            for _ in range(together):
                script([job_key(job.id), lease_key(job.id), preview_key(job.id)], progress, client=pipe)
            answers = pipe.execute()
        assert set(answers) == {b"continue"}
        sent += together
    spent = Cost.of(redis) - before
    return Ceiling(together, sent / spent.seconds, spent.cpu_s / sent)


# --- statistics of Redis


@dataclass(frozen=True)
class Cost:
    seconds: float
    commands: float
    bytes: float
    log_bytes: float
    cpu_s: float

    @classmethod
    def of(cls, redis: Any) -> Cost:
        info, commands = redis.info(), redis.info("commandstats")
        return cls(
            seconds=time.monotonic(),
            commands=sum(entry["calls"] for entry in commands.values()),
            bytes=info["total_net_input_bytes"] + info["total_net_output_bytes"],
            log_bytes=info["aof_current_size"],
            cpu_s=info["used_cpu_user"] + info["used_cpu_sys"],
        )

    def __sub__(self, earlier: Cost) -> Cost:
        return Cost(*(a - b for a, b in zip(asdict(self).values(), asdict(earlier).values(), strict=True)))

    def over(self, count: int) -> Cost:
        return Cost(*(value / count for value in asdict(self).values()))


def _memory(redis: Any, jobs: Sequence[Job]) -> float:
    indexes = sum(redis.memory_usage(key, samples=0) for key in (INDEX, owner_index(jobs[0].owner)))
    return sum(redis.memory_usage(job_key(job.id), samples=0) + indexes / len(jobs) for job in jobs) / len(jobs)


def _cost_of_a_poll(services: Services, count: int = 200) -> Cost:
    """Cost of one poll, while no worker is running."""
    store = services.store
    job = _job()
    assert store.restore(job.model_copy(update={"state": JobState.COMPLETED}))
    before = Cost.of(services.redis)
    for _ in range(count):
        store.get_with_position(job.id)
    cost = (Cost.of(services.redis) - before).over(count)
    assert store.delete(job.id) is not None
    return cost


# --- the clients


def _create(services: Services, count: int) -> tuple[list[Job], list[float]]:
    """Create jobs as POST /v1/videos does after validation. Returns them and the sorted latencies in seconds."""
    queue = generate_queue(services.redis, "demo")
    jobs, latencies = [_job() for _ in range(count)], list[float]()
    for job in jobs:
        began = time.perf_counter()
        services.store.create(job, queue)
        latencies.append(time.perf_counter() - began)
    return jobs, sorted(latencies)


def _poll_until_done(services: Services, jobs: Sequence[Job]) -> list[float]:
    """Poll as GET /v1/videos/{id} does. Returns the sorted latencies in seconds."""
    latencies: list[float] = []
    open_ids = [job.id for job in jobs]
    choose = random.Random(0)
    due = time.perf_counter()
    while open_ids:
        due += POLL_EVERY_S
        time.sleep(max(0.0, due - time.perf_counter()))
        job_id = choose.choice(open_ids)
        began = time.perf_counter()
        shown = services.store.get_with_position(job_id)
        latencies.append(time.perf_counter() - began)
        assert shown is not None
        if shown[0].state.is_terminal:
            open_ids.remove(job_id)
    return sorted(latencies)


def _job() -> Job:
    return Job.new(
        Generation(
            model="demo",
            prompt=PROMPT,
            negative_prompt="low quality",
            seed=7,
            width=512,
            height=512,
            num_frames=16,
            fps=8,
            num_inference_steps=50,
            guidance_scale=7.5,
            sampler=SamplerSettings(),
        )
    )


def _times(jobs: Sequence[Job]) -> tuple[list[float], list[float]]:
    """Start times and end times, each sorted."""
    assert all(job.started_at is not None and job.completed_at is not None for job in jobs)
    return sorted(job.started_at or 0.0 for job in jobs), sorted(job.completed_at or 0.0 for job in jobs)


def _gaps(began: Sequence[float], ended: Sequence[float], workers: int) -> Iterator[float]:
    """Seconds from each end to the next start; the first `workers` starts follow no end."""
    return (start - end for start, end in zip(began[workers:], ended, strict=False))


def _at(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0


# --- the processes


@contextmanager
def running(programs: Sequence[tuple[str, ...]], environment: Mapping[str, str]) -> Iterator[None]:
    started = [
        subprocess.Popen([sys.executable, "-m", *program], env=dict(environment), stderr=subprocess.DEVNULL)
        for program in programs
    ]
    try:
        yield
        assert all(process.poll() is None for process in started), "a process ended while it was measured"
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(60)


def _wait_for_workers(services: Services, count: int) -> None:
    deadline = time.monotonic() + 60 + 10 * count
    while len(queue_stats(services.redis, services.store, "demo").workers) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all of {count} workers have started")
        time.sleep(0.2)


def _bare_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("IVMIX_")}


if __name__ == "__main__":
    main()
