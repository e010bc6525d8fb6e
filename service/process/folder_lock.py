"""An exclusive lock on a folder, held by open descriptors, which child processes can inherit.

Both the folder and a file in it are locked: the folder's lock outlives a deletion or renaming of the file, and the file
serves file systems that cannot lock folders (NFS). Other spellings of a path and symbolic links lead to the same lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

LOCK_FILE = "lock"
LOWEST_DESCRIPTOR = 10  # a shell or a process with closed standard streams would reuse a lower one
RETRY_S = 0.05
CANNOT_LOCK_FOLDERS = {errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


class FolderInUse(Exception):
    """Another process holds the lock."""


class FolderLock:
    """`descriptors` hold the lock until each of them is closed in every process that has inherited it."""

    def __init__(self, descriptors: tuple[int, ...], file: int) -> None:
        self.descriptors = descriptors
        self._file = file

    @classmethod
    def acquire(cls, folder: Path, *, timeout_s: float) -> FolderLock:
        """Raises FolderInUse after `timeout_s`, and OSError if the folder is not accessible."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return cls._try(folder)
            except BlockingIOError as e:
                if time.monotonic() >= deadline:
                    raise FolderInUse from e
                time.sleep(RETRY_S)

    @classmethod
    def _try(cls, folder: Path) -> FolderLock:
        held: list[int] = []
        try:
            held.append(_open_high(folder, os.O_RDONLY | os.O_DIRECTORY))
            _lock_folder(held[0])
            held.append(_open_high(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT))
            fcntl.flock(held[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_same_file(held[1], folder / LOCK_FILE):  # replaced meanwhile
                raise BlockingIOError
        except BaseException:
            for descriptor in held:
                os.close(descriptor)
            raise
        return cls(tuple(held), held[1])

    def write(self, text: str) -> None:
        """Replace the content of the lock file, for readers of the folder."""
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text.encode(), 0)

    def release(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = ()


def _open_high(path: Path, flags: int) -> int:
    low = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        return fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, LOWEST_DESCRIPTOR)
    finally:
        os.close(low)


def _lock_folder(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as e:
        if e.errno not in CANNOT_LOCK_FOLDERS:
            raise


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
