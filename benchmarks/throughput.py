"""`python -m benchmarks.throughput`: clips per hour of one worker with the demo models, compared to the bare engine.

Two alternating arms with the same requests: the whole service (queue, records, leases, a real worker with its child
process, file storage) with all jobs queued at the start, and a plain loop over `Engine.generate` and MP4 encoding in
this process. Prints a table and seconds per phase; writes JSON with --json. The gap is the time from the last step of a
job to the start of the next, from the metric `ivmix_worker_gap_seconds`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2
import torch

from service.catalog.registry import ModelRegistry
from service.jobs.model import Generation, Job, Phase
from service.jobs.request import VideoRequest
from service.jobs.rq_queues import generate_queue
from service.process.embedded_valkey import EmbeddedValkey, free_port
from service.settings import Settings
from service.wiring import Services, open_services
from worker.child import mp4
from worker.child.engine import Engine

PROMPT = "a red circle moving right on a teal background"
PHASES = (Phase.ENCODING, Phase.SAMPLING, Phase.DECODING, Phase.UPLOADING)


@dataclass
class Served:
    """`wall_s` is from the start of the first job to the end of the last; `gaps_s` is the sum of all gaps."""

    jobs: int
    wall_s: float
    gaps: int
    gaps_s: float
    phases_s: dict[str, float]  # median over the jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=8, help="jobs per round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="instead of the model's default")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    entry = ModelRegistry.load().get("demo")
    request = VideoRequest(prompt=PROMPT, num_inference_steps=arguments.steps)
    wanted = [entry.resolve(request.model_copy(update={"seed": seed})) for seed in range(arguments.jobs)]
    served: list[Served] = []
    bare: list[float] = []
    with tempfile.TemporaryDirectory() as folder, worker_of(Path(folder)) as (services, metrics_url):
        engine = Engine(entry, torch.device("cpu"))
        for _ in range(arguments.rounds):
            served.append(serve(services, metrics_url, wanted))
            bare.append(loop(engine, wanted))
    show(served, bare, arguments.jobs)
    if arguments.json:
        arguments.json.write_text(json.dumps({"served": [asdict(s) for s in served], "bare_s": bare}, indent=1))


def show(served: list[Served], bare: list[float], jobs: int) -> None:
    best, plain = min(served, key=lambda s: s.wall_s), min(bare)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {len(bare)} rounds of {jobs} jobs, fastest of each")
    print(f"{'arm':<34}{'seconds':>9}{'clips per hour':>16}{'x bare':>8}")
    for name, seconds in (("bare engine, one process", plain), ("service, one worker", best.wall_s)):
        print(f"{name:<34}{seconds:>9.2f}{3600 * jobs / seconds:>16.0f}{plain / seconds:>8.2f}")
    print("seconds per job: " + ", ".join(f"{phase} {best.phases_s[phase]:.3f}" for phase in PHASES))
    gap_s = best.gaps_s / best.gaps if best.gaps else 0.0
    share = gap_s / (best.wall_s / jobs)
    print(f"gap between queued jobs: {1000 * gap_s:.0f} ms on average, {100 * share:.2f} % of a job's time")
    print("goal: at most 1 % or 50 ms, whichever is larger")


def loop(engine: Engine, wanted: list[Generation]) -> float:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for generation in wanted:
            clip = engine.generate(generation)
            mp4.write_mp4(clip.frames.numpy(), Path(folder) / "a.mp4", fps=generation.fps)
    return time.perf_counter() - began


def serve(services: Services, metrics_url: str, wanted: list[Generation]) -> Served:
    queue = generate_queue(services.redis, wanted[0].model)
    sent = [services.store.create(Job.new(wanted[0]), queue).id]
    _reaches(services, sent[0], lambda job: job.step > 0)  # the pause before the first job does not count as a gap
    before = _gaps(metrics_url)
    sent += [services.store.create(Job.new(generation), queue).id for generation in wanted[1:]]
    done = [_reaches(services, job_id, lambda job: job.state.is_terminal) for job_id in sent]
    if failed := [job.error for job in done if job.error is not None]:
        sys.exit(f"a job failed: {failed[0]}")
    after = _gaps(metrics_url)
    starts, ends = [job.started_at or 0.0 for job in done], [job.completed_at or 0.0 for job in done]
    phases = {str(phase): statistics.median(job.timings[phase] for job in done) for phase in PHASES}
    return Served(len(done), max(ends) - min(starts), int(after[0] - before[0]), after[1] - before[1], phases)


@contextmanager
def worker_of(folder: Path) -> Iterator[tuple[Services, str]]:
    """A Valkey server and a real worker process. Yields the services and the URL of the worker's metrics."""
    server = EmbeddedValkey(folder)
    url, port = server.start(), free_port()
    settings = {"REDIS_URL": url, "DATA_DIR": str(folder), "WORKER_METRICS_PORT": str(port)}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IVMIX_")}
    environment |= {f"IVMIX_{name}": value for name, value in settings.items()}
    services = open_services(Settings(redis_url=url, data_dir=folder))
    process = subprocess.Popen([sys.executable, "-m", "worker", "demo"], env=environment, stderr=subprocess.DEVNULL)
    try:
        yield services, f"http://127.0.0.1:{port}/metrics"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        services.close()
        server.stop()


def _reaches(services: Services, job_id: str, is_there: Callable[[Job], bool], *, within_s: float = 1800) -> Job:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        job = services.store.get(job_id)
        if job is not None and (is_there(job) or job.state.is_terminal):
            return job
        time.sleep(0.05)
    sys.exit(f"{job_id}: no progress after {within_s:.0f} s; is the machine overloaded?")


def _gaps(metrics_url: str) -> tuple[float, float]:
    """Number of gaps so far, and the sum of their seconds."""
    text = httpx2.get(metrics_url, trust_env=False, timeout=10).text
    found = dict(re.findall(r"^ivmix_worker_gap_seconds_(count|sum) (\S+)", text, re.MULTILINE))
    return float(found["count"]), float(found["sum"])


if __name__ == "__main__":
    main()
