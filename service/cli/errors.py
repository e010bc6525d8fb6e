"""Error output of commands: one sentence for errors that the user can correct, a traceback for all others."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import typer

from service.cli.client import RequestError, VideoFailedError
from service.errors import ServiceError


@contextmanager
def user_errors() -> Generator[None]:
    try:
        yield
    except (ServiceError, RequestError, VideoFailedError) as e:
        typer.echo(f"ivmix: {e}", err=True)
        raise typer.Exit(1) from e
