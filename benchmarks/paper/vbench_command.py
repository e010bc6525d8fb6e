"""`ivmix bench vbench DIR`: what VBench says of the clips in a folder, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.paper.vbench import DIMENSIONS, measure


def vbench(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Clips: of a run, DIR/clips/ARM.")],
    python: Annotated[Path, typer.Option(metavar="FILE", help="bin/python of the environment that VBench is in.")],
    dimension: Annotated[
        list[str] | None,
        typer.Option(help=f"May be repeated; dynamic_degree is added. Default: {', '.join(DIMENSIONS)}."),
    ] = None,
) -> None:
    """Print VBench's mean and value per clip of each dimension as JSON. VBench needs its own environment and a GPU."""
    found = measure(python, folder, dimension or DIMENSIONS)
    typer.echo(json.dumps({name: asdict(each) for name, each in found.items()}, indent=2, allow_nan=False))
