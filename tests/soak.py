"""`python -m tests.soak [--minutes 30]` runs the long tests for a bounded time and prints a summary.

Parts: fault injection (tests.faults, a new seed per run), fuzzing (Schemathesis), randomly damaged model folders, and
the tests marked `slow` (resumed videos, generated code, scale simulation, the cases that `sample` leaves out) and
those that draw examples.
`make test` runs a short share of each with fixed seeds.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

SHARES = {"faults": 0.45, "fuzzing": 0.2, "broken models": 0.05, "slow tests": 0.3}  # of the time
SHORTEST_S = 120.0  # no run starts with less time left


@dataclass(frozen=True)
class Result:
    part: str
    what: str
    seconds: float
    passed: bool
    log: Path


def main(
    minutes: Annotated[float, typer.Option(min=10, help="Time for all parts together.")] = 30,
    seed: Annotated[int | None, typer.Option(help="First seed; default: random.")] = None,
) -> None:
    """Run every part, print a summary, exit with 1 if any run failed."""
    first = random.randrange(1_000_000) if seed is None else seed
    logs = Path(tempfile.mkdtemp(prefix="ivmix-soak-"))
    typer.echo(f"seed {first}, {minutes:g} minutes, logs in {logs}")
    results = [
        *_faults(first, logs, minutes * 60 * SHARES["faults"]),
        *_fuzzing(first, logs, minutes * 60 * SHARES["fuzzing"]),
        *_broken_models(first, logs, minutes * 60 * SHARES["broken models"]),
        *_slow_tests(first, logs, minutes * 60 * SHARES["slow tests"]),
    ]
    failed = [result for result in results if not result.passed]
    typer.echo(f"{len(results)} runs, {len(failed)} failed")
    for result in failed:
        typer.echo(f"  {result.part}, {result.what}: {result.log}")
    sys.exit(1 if failed else 0)


def _faults(seed: int, logs: Path, budget_s: float) -> Iterator[Result]:
    deadline = time.monotonic() + budget_s
    while deadline - time.monotonic() > SHORTEST_S:
        options = ["--jobs", "60", "--faults", "28", "--seed", str(seed), "--folder", str(logs / f"faults-{seed}")]
        yield _run("faults", f"seed {seed}", ["-m", "tests.faults", *options], logs, {}, 900)
        seed += 1


def _fuzzing(seed: int, logs: Path, budget_s: float) -> Iterator[Result]:
    environment = {"SCHEMATHESIS_SECONDS": str(max(5, int(budget_s / 3) - 20)), "SCHEMATHESIS_SEED": str(seed)}
    command = ["-m", "pytest", "-q", "tests/integration/test_schemathesis.py"]
    yield _run("fuzzing", f"seed {seed}", command, logs, environment, budget_s + 600)


def _broken_models(seed: int, logs: Path, budget_s: float) -> Iterator[Result]:
    environment = {"BROKEN_ROUNDS": str(int(budget_s)), "BROKEN_SEED": str(seed)}  # a round takes half a second
    command = ["-m", "pytest", "-q", "tests/unit/worker/test_broken_models.py", "-k", "randomly_damaged"]
    yield _run("broken models", f"seed {seed}", command, logs, environment, budget_s + 600)


def _slow_tests(seed: int, logs: Path, budget_s: float) -> Iterator[Result]:
    """Repeat them, and those that draw examples, with new seeds until the time is over."""
    deadline = time.monotonic() + budget_s
    drawn = ["--hypothesis-profile=new", "-m", "(slow or hypothesis) and not gpu"]
    command = ["-m", "pytest", "-q", *drawn, "-p", "tests.stop_at_deadline"]
    while (left := deadline - time.monotonic()) > SHORTEST_S:
        environment = {"RESUME_SEED": str(seed), "STOP_AFTER_S": str(left)}
        yield _run("slow tests", f"seed {seed}", command, logs, environment, left + 900)
        seed += 1


def _run(part: str, what: str, command: list[str], logs: Path, environment: dict[str, str], limit_s: float) -> Result:
    log = logs / f"{part} {what}.log".replace(" ", "-")
    began = time.monotonic()
    with log.open("w") as file:
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        try:
            code = subprocess.run(
                [sys.executable, *command], env=env, stdout=file, stderr=file, timeout=limit_s
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    seconds = time.monotonic() - began
    last = next((line for line in reversed(log.read_text().splitlines()) if line.strip()), "")
    typer.echo(f"{part}, {what}: {'passed' if code == 0 else f'FAILED ({code})'} in {seconds:.0f} s  {last.strip()}")
    return Result(part, what, seconds, code == 0, log)


if __name__ == "__main__":
    typer.run(main)
