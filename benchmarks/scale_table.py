"""What `benchmarks.scale_sim` measures, as rows and as tables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Round:
    """Times in seconds. Commands include those inside scripts, but not those of the polling client."""

    workers: int
    jobs: int
    seconds: float
    per_hour: float
    of_ideal: float  # 1: no time between jobs
    gap_p50: float
    gap_p95: float
    create_p50: float
    create_p99: float
    poll_p50: float
    poll_p99: float
    commands_per_job: float
    bytes_per_job: float  # over the network, both directions
    log_bytes_per_job: float
    memory_per_job: float  # an ended job's record and its share of the indexes
    cpu_per_job: float  # of the Redis process
    idle_commands_per_s: float  # all workers and maintenance, before the first job
    idle_bytes_per_s: float


@dataclass(frozen=True)
class Ceiling:
    """Rate of progress reports. Reports that arrive at the same moment share one fsync."""

    together: int
    per_second: float
    cpu_each: float  # seconds of the Redis process


def table(rounds: Sequence[Round], script: Mapping[str, Any]) -> str:
    ideal_s = script["encode_s"] + sum(script["steps_s"]) + script["decode_s"]
    lines = [
        f"jobs of {ideal_s:.1f} s in {len(script['steps_s'])} steps, {os.cpu_count()} cores, times in milliseconds",
        "| workers | jobs | videos/h | / N | of ideal | gap p50 | p95 | create p50 | p99 | poll p50 | p99 "
        "| commands/job | kB/job | log kB/job | memory kB/job | Redis CPU/job | idle commands/s |",
        "|" + "---|" * 17,
    ]
    one = rounds[0].per_hour / rounds[0].workers
    for found in rounds:
        times = (
            *(found.gap_p50, found.gap_p95, found.create_p50, found.create_p99),
            *(found.poll_p50, found.poll_p99),
        )
        sizes = (found.bytes_per_job, found.log_bytes_per_job, found.memory_per_job)
        cells = [
            *(str(found.workers), str(found.jobs), f"{found.per_hour:.1f}"),
            *(f"{found.per_hour / found.workers / one:.3f}", f"{found.of_ideal:.3f}"),
            *(f"{1000 * value:.1f}" for value in times),
            f"{found.commands_per_job:.0f}",
            *(f"{value / 1000:.1f}" for value in sizes),
            *(f"{1000 * found.cpu_per_job:.1f}", f"{found.idle_commands_per_s:.1f}"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ceiling_table(found: Sequence[Ceiling]) -> str:
    lines = ["| simultaneous reports | per second | Redis CPU microseconds |", "|---|---|---|"]
    lines += [f"| {c.together} | {c.per_second:.0f} | {1e6 * c.cpu_each:.0f} |" for c in found]
    return "\n".join(lines)
