"""How commands complain: in one sentence about what the user can mend, with a traceback about everything else."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import typer

from service.cli.client import RefusedError, VideoFailedError
from service.errors import ServiceError


@contextmanager
def user_errors() -> Generator[None]:
    try:
        yield
    except (ServiceError, RefusedError, VideoFailedError) as e:
        typer.echo(f"ivmix: {e}", err=True)
        raise typer.Exit(1) from e
