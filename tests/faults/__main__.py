"""`python -m tests.faults --jobs 500 --faults 100 --seed 1`: exits with 1 if a promise was broken."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tests.faults.fault_kinds import ALL_KINDS, WITH_SENTINELS
from tests.faults.nemesis import draw
from tests.faults.report import show
from tests.faults.run import Run


def main(
    jobs: Annotated[int, typer.Option(min=1, help="Videos to submit.")] = 40,
    faults: Annotated[int, typer.Option(min=0, help="Faults to inject, drawn from the seed.")] = 15,
    seed: Annotated[int, typer.Option(help="The same seed injects the same faults in the same order.")] = 1,
    only: Annotated[list[str] | None, typer.Option(help="Inject only this kind of fault; repeatable.")] = None,
    sentinels: Annotated[
        bool, typer.Option("--sentinels", help="The queue has replicas and Sentinels; primaries are killed.")
    ] = False,
    folder: Annotated[Path | None, typer.Option(help="For logs and the history; default: a new folder.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the faults of this seed and exit.")] = False,
) -> None:
    """Submit videos while injecting faults, then check every promise."""
    console, kinds = Console(width=110), tuple(only or (WITH_SENTINELS if sentinels else ()))
    if unknown := set(kinds) - set(ALL_KINDS):
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; kinds: {', '.join(ALL_KINDS)}", param_hint="--only")
    if plan:
        for planned in draw(seed, faults, kinds):
            console.print(f"{planned.number:4}  +{planned.pause_s:.1f} s  {planned.kind}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that contexts stop every process
    run = Run(folder or Path(tempfile.mkdtemp(prefix="ivmix-faults-")), jobs, faults, seed, kinds, sentinels)
    console.print(f"seed {seed}: {jobs} videos, {faults} faults; history in {run.path}")
    lines, violations = run.go()
    show(lines, violations, console)
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    typer.run(main)
