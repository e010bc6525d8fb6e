"""Logging of every process: one line per event to stderr, as JSON or text, with the ids that it is about.

Modules log through the standard library. `log_context` binds ids to all lines of a block, so messages need not repeat
them. As a last defence, signed URLs, passwords and tokens are redacted here.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from service.settings import LogFormat

# Verbose libraries, or those that log events which our own lines cover.
_QUIET = ("httpx2", "httpcore2", "boto3", "botocore", "s3transfer", "urllib3", "rq", "uvicorn")

_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\?[^\s\"']*x-amz-signature=[^\s\"']*", re.IGNORECASE), "?[signed]"),
    (re.compile(r"(?<=://)[^\s/@\"']*:[^\s/@\"']*@"), "[credentials]@"),
    (re.compile(r"\b(bearer) +[^\s\"']+", re.IGNORECASE), r"\1 [secret]"),
)


# `extra=` of a line that is repeated as long as something is wrong, such as an absent Redis.
ONCE_A_MINUTE = {"once_a_minute": True}
REPEAT_S = 60.0
# RQ's workers log every attempt to connect, the others what any client can cause, such as invalid requests.
_REPEATING_LIBRARIES = ("rq", "uvicorn", "asyncio")


class OnceAMinute(logging.Filter):
    """Drops a line marked with ONCE_A_MINUTE if the same one was logged less than a minute ago."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._logged: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not getattr(record, "once_a_minute", False) and record.name.partition(".")[0] not in _REPEATING_LIBRARIES:
            return True
        now, line = self._now(), (record.name, record.getMessage())
        self._logged = {known: at for known, at in self._logged.items() if now - at < REPEAT_S}
        if line in self._logged:
            return False
        self._logged[line] = now
        return True


def configure_logging(log_format: LogFormat, *, level: int = logging.INFO, file: Path | None = None) -> None:
    """Configure the root logger of this process.

    Args:
        file: where the lines go; None: to stderr.
    """
    handler = logging.FileHandler(file) if file else logging.StreamHandler(sys.stderr)
    renderer = _renderer(log_format, is_terminal=file is None and sys.stderr.isatty())
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=_PROCESSORS, processors=[ProcessorFormatter.remove_processors_meta, renderer]
        )
    )
    handler.addFilter(OnceAMinute())
    logging.raiseExceptions = file is None  # a full disk must not print a traceback per line into the terminal
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


def log_context(**ids: str) -> AbstractContextManager[None]:
    """Add ids to every line logged inside: `with log_context(video_id=..., execution_id=...)`."""
    return structlog.contextvars.bound_contextvars(**ids)


def log_context_of_task(**ids: str) -> None:
    """As `log_context`, for the rest of the current asyncio task."""
    structlog.contextvars.bind_contextvars(**ids)


def _renderer(log_format: LogFormat, *, is_terminal: bool) -> Processor:
    if log_format == "text" or (log_format == "auto" and is_terminal):
        return structlog.dev.ConsoleRenderer(colors=False)
    return structlog.processors.JSONRenderer()


def _redact_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {name: _redacted(value) for name, value in event.items()}


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        for pattern, replacement in _SECRETS:
            value = pattern.sub(replacement, value)
    return value


_PROCESSORS: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    # As a string: structured tracebacks include local variables, and so prompts.
    structlog.processors.format_exc_info,
    _redact_secrets,
]
