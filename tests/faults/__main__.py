"""`python -m tests.faults --jobs 500 --faults 100 --seed 1`: exits 1 if a promise was broken."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tests.faults.nemesis import KINDS, draw
from tests.faults.report import show
from tests.faults.run import Run


def main(
    jobs: Annotated[int, typer.Option(min=1, help="Videos that clients get accepted.")] = 40,
    faults: Annotated[int, typer.Option(min=0, help="Faults, drawn from the seed.")] = 15,
    seed: Annotated[int, typer.Option(help="The same seed brings the same faults in the same order.")] = 1,
    only: Annotated[list[str] | None, typer.Option(help="Only this kind of fault; may be said several times.")] = None,
    folder: Annotated[Path | None, typer.Option(help="For logs and the history; a new one if left out.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only show the faults that would come.")] = False,
) -> None:
    """Break everything while it works, then judge."""
    console, kinds = Console(width=110), tuple(only or ())
    if unknown := set(kinds) - set(KINDS):
        raise typer.BadParameter(f"{', '.join(unknown)}; there are {', '.join(KINDS)}", param_hint="--only")
    if plan:
        for planned in draw(seed, faults, kinds):
            console.print(f"{planned.number:4}  +{planned.pause_s:.1f} s  {planned.kind}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # takes everything down in order
    run = Run(folder or Path(tempfile.mkdtemp(prefix="ivmix-faults-")), jobs, faults, seed, kinds)
    console.print(f"seed {seed}: {jobs} videos, {faults} faults; history in {run.path}")
    lines, violations = run.go()
    show(lines, violations, console)
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    typer.run(main)
