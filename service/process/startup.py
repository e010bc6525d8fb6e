"""The start of every process: streams, settings, logs, file modes; one sentence for errors of settings and machine."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.errors import ServiceError
from service.log_config import configure_logging
from service.process.data_folder import keep_private, prepare_folder
from service.process.parent_watch import end_with_supervisor
from service.process.standard_streams import open_closed_streams
from service.settings import Settings, load_settings


@contextmanager
def one_sentence_errors() -> Generator[None]:
    """End the process with exit status 1 and a sentence if the settings, the machine or Redis are the cause."""
    try:
        yield
    except ServiceError as e:
        # Names in weight files and on hubs are anyone's: none may write more than letters to the terminal.
        sys.exit("".join(c if c.isprintable() or c == "\n" else "?" for c in f"ivmix: {e}"))
    except (RedisConnectionError, RedisTimeoutError) as e:
        sys.exit(f"ivmix: Redis is unreachable: {e}")
    except OSError as e:
        sys.exit(f"ivmix: {e.filename or 'this machine'}: {e.strerror or e}; correct its permissions or free space")


def start_process() -> Settings:
    """Raises ConfigurationError."""
    open_closed_streams()
    end_with_supervisor()
    settings = load_settings()
    configure_logging(settings.log_format)
    keep_private(settings.data_dir)
    return settings


def prepare_data_folder(settings: Settings) -> None:
    """For processes that store videos. Raises ConfigurationError."""
    if settings.storage == "file":
        prepare_folder(settings.data_dir, "IVMIX_DATA_DIR")
        keep_private(settings.data_dir)  # it may be new
