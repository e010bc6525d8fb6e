"""The file of a backup: gzip-compressed lines of JSON, written and read one at a time.

The first line names the format, the last one has the number and the SHA-256 of those before it, so that a file which
was cut off is recognised before anything is restored. Bytes are written as Latin-1 text.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from service.errors import DISK_FULL_ERRNOS, ConfigurationError

FORMAT, VERSION = "ivmix_backup", 1
Line = dict[str, Any]


class BackupWriter:
    """A context: the file appears when it ends without an error, whole. Only this user can read it."""

    def __init__(self, path: Path, *, made_by: str) -> None:
        self._path, self._part = path, path.with_name(f".{path.name}.part")
        self._made_by = made_by
        self._digest, self._count = hashlib.sha256(), 0

    def __enter__(self) -> Self:
        try:
            self._raw = open(self._part, "wb", opener=lambda path, flags: os.open(path, flags, 0o600))
        except OSError as e:
            raise ConfigurationError(f"{self._path} cannot be written: {e.strerror}; name another folder") from e
        self._stream = gzip.GzipFile(filename="", fileobj=self._raw, mode="wb", compresslevel=6)
        self.write({FORMAT: VERSION, "made_by": self._made_by, "made_at": time.time()})
        return self

    def write(self, line: Line) -> None:
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        self._digest.update(data)
        self._count += 1
        self._stream.write(data)

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                end = {"end": self._count, "sha256": self._digest.hexdigest()}
                self._stream.write(json.dumps(end).encode() + b"\n")
                self._stream.close()
                self._raw.flush()
                os.fsync(self._raw.fileno())
                self._part.replace(self._path)
        except OSError as error:
            raise self._not_written(error) from error
        finally:
            with contextlib.suppress(OSError):  # what is in its buffer, once more
                self._raw.close()
            with contextlib.suppress(OSError):
                self._part.unlink(missing_ok=True)
        if isinstance(e, OSError) and e.errno in DISK_FULL_ERRNOS:
            raise self._not_written(e) from e

    def _not_written(self, e: OSError) -> ConfigurationError:
        return ConfigurationError(f"{self._path} cannot be written: {e.strerror}; make room, or name another folder")


def check_backup(path: Path) -> Line:
    """Read the whole file once and return its first line.

    Raises:
        ConfigurationError: it is no backup, is damaged or cut off, or is of a later format.
    """
    digest, count, first, end = hashlib.sha256(), 0, Line(), Line()
    for data in _lines(path):
        if end:
            raise ConfigurationError(f"{path} is damaged: something follows its end; use another backup")
        line = _decoded(path, data)
        if not count:
            first = _checked_first(path, line)
        if "end" in line:
            end = line
        else:
            digest.update(data)
            count += 1
    if end.get("end") != count or end.get("sha256") != digest.hexdigest():
        raise ConfigurationError(f"{path} is cut off or damaged; use another backup")
    return first


def read_backup(path: Path) -> Iterator[Line]:
    """The lines between the first and the last one of a file that `check_backup` has accepted."""
    for number, data in enumerate(_lines(path)):
        line = _decoded(path, data)
        if number and "end" not in line:
            yield line


def _checked_first(path: Path, line: Line) -> Line:
    version = line.get(FORMAT)
    if not isinstance(version, int):
        raise ConfigurationError(f"{path} is no backup of ivmix")
    if version > VERSION:
        raise ConfigurationError(f"{path} has format {version}, and this ivmix reads up to {VERSION}: upgrade ivmix")
    return line


def _decoded(path: Path, data: bytes) -> Line:
    try:
        line = json.loads(data)
    except ValueError as e:
        raise ConfigurationError(f"{path} is no backup of ivmix, or is damaged") from e
    if not isinstance(line, dict):
        raise ConfigurationError(f"{path} is no backup of ivmix")
    return cast(Line, line)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") as stream:
            yield from stream
    except (EOFError, zlib.error) as e:
        raise ConfigurationError(f"{path} is cut off or damaged; use another backup") from e
    except gzip.BadGzipFile as e:
        raise ConfigurationError(f"{path} is no backup of ivmix, or is damaged") from e
    except OSError as e:
        raise ConfigurationError(f"{path} cannot be read: {e.strerror}") from e
