"""`ivmix bench`: every command is one module, which loads what it needs when the command runs."""

from __future__ import annotations

import typer

from benchmarks.paper.bench_commands import register
from benchmarks.paper.distance_command import distance
from benchmarks.paper.vbench_command import vbench

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="The paper's benchmarks, their distances and their tables."
)


@app.callback()
def group() -> None:
    """Without it, Typer takes a single command for the whole program."""


app.command()(distance)
app.command()(vbench)
register(app)

if __name__ == "__main__":
    app(prog_name="ivmix bench")
