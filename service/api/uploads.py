"""Files that requests bring: each in a separate temporary folder, few at a time, gone when the request is done."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import BinaryIO, TypeVar

from anyio import CapacityLimiter, to_thread

from service.errors import BodyTooLarge, NoSpace, RateLimited
from service.settings import Settings
from service.storage.free_space import FreeSpace

MOST_UPLOADS = 16  # of one API process
MOST_UPLOADS_PER_CLIENT = 8
READ_AT_ONCE = 2  # pictures and clips that are decoded at the same time; the others wait
RETRY_AFTER_S = 2
PREFIX = "ivmix-upload-"
LEFT_BEHIND_S = 86400.0  # age of a folder whose process has ended
T = TypeVar("T")


class Uploads:
    """The uploads of one API process."""

    def __init__(self, settings: Settings) -> None:
        self._parent = settings.upload_folder
        self._space = FreeSpace(self._parent, settings.min_free_mb)
        self._counts: Counter[str] = Counter()
        self._lock = Lock()
        self._limiter = CapacityLimiter(READ_AT_ONCE)

    @contextmanager
    def folder(self, client: str) -> Generator[Path]:
        """A new folder, which is removed at the end.

        Raises:
            RateLimited: too many uploads are in progress, in total or of this client.
            NoSpace: the disk is almost full.
        """
        with self._slot(client):
            self._parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._space.require()
            self._remove_left_behind()
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._parent))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    async def read(self, function: Callable[..., T], *arguments: object) -> T:
        """What the function returns, which runs in a thread when its turn comes."""
        return await to_thread.run_sync(function, *arguments, limiter=self._limiter)

    @contextmanager
    def _slot(self, client: str) -> Generator[None]:
        with self._lock:
            if self._counts.total() >= MOST_UPLOADS or self._counts[client] >= MOST_UPLOADS_PER_CLIENT:
                raise RateLimited("Too many files are being uploaded at the same time; try again.", RETRY_AFTER_S)
            self._counts[client] += 1
        try:
            yield
        finally:
            with self._lock:
                self._counts -= Counter([client])  # forgets a client without uploads

    def _remove_left_behind(self) -> None:
        oldest = time.time() - LEFT_BEHIND_S
        for entry in os.scandir(self._parent):
            if entry.name.startswith(PREFIX) and entry.stat(follow_symlinks=False).st_mtime < oldest:
                shutil.rmtree(entry.path, ignore_errors=True)


class UploadedFile:
    """A file that arrives in parts.

    Args:
        param: the field's name.
        most: bytes.
    """

    def __init__(self, path: Path, param: str, most: int) -> None:
        self.path, self._param, self._most = path, param, most
        self._size = 0
        self._file: BinaryIO = path.open("xb")

    def write(self, data: bytes | memoryview) -> None:
        """Into the page cache of the system, not to the disk, so that it takes microseconds.

        Raises:
            BodyTooLarge: as soon as the limit is passed.
            NoSpace: the disk is full.
        """
        self._size += len(data)
        if self._size > self._most:
            raise too_large(self._param, self._most)
        try:
            self._file.write(data)
        except OSError as e:
            raise NoSpace from e

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as e:
            raise NoSpace from e


def too_large(param: str, most: int) -> BodyTooLarge:
    message = f"The file in '{param}' is larger than {most} bytes (IVMIX_MAX_REFERENCE_BYTES); send a smaller one."
    return BodyTooLarge(param, message)
