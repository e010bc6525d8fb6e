"""Stores objects as files in a local folder. Writes are atomic and durable."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.errors import ConfigurationError, PermanentStorageError, StorageError
from service.storage.base import StoredObject, sha256_of, started, verify_sha256

CHUNK_BYTES = 256 * 1024
PARTIAL = ".part-"  # prefix of file names while they are being written; no key starts with it


class FileStorage:
    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def put(self, path: Path, *, key: str, media_type: str, sha256: str) -> None:  # noqa: ARG002  # files have no media type
        target = self._path(key)
        verify_sha256(path, sha256)
        with _storage_errors(key):
            _make_folders(target.parent)
            part = target.parent / f"{PARTIAL}{secrets.token_hex(8)}"
            try:
                _copy_to_disk(path, part)
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
            _sync_folder(target.parent)

    def open(self, key: str, start: int = 0, end: int | None = None) -> Generator[bytes]:
        with _storage_errors(key):
            file = self._path(key).open("rb")
            remaining = (file.seek(0, os.SEEK_END) if end is None else end) - start
            file.seek(start)

        def chunks() -> Generator[bytes]:
            nonlocal remaining
            with file:
                yield b""  # see `started`
                while remaining > 0 and (chunk := file.read(min(CHUNK_BYTES, remaining))):
                    remaining -= len(chunk)
                    yield chunk

        return started(chunks())

    def size(self, key: str) -> int | None:
        with _storage_errors(key):
            path = self._path(key)
            return path.stat().st_size if path.is_file() else None

    def matches(self, key: str, *, size_bytes: int, sha256: str) -> bool:
        with _storage_errors(key):
            return self.size(key) == size_bytes and sha256_of(self._path(key)) == sha256

    def list(self, prefix: str) -> Iterator[StoredObject]:
        self._path(f"{prefix}x")  # reject a prefix that leads out of the root
        folder = self._root / prefix.rpartition("/")[0]
        paths = (path for path in folder.rglob("*") if not path.name.startswith(PARTIAL) and path.is_file())
        with _storage_errors(prefix):
            found = {path.relative_to(self._root).as_posix(): path for path in paths}
        for key in sorted(key for key in found if key.startswith(prefix)):
            try:
                stat = found[key].stat()
            except FileNotFoundError:  # deleted in the meantime
                continue
            yield StoredObject(key, stat.st_size, stat.st_mtime)

    def url(self, key: str, *, filename: str, media_type: str) -> str | None:  # noqa: ARG002
        return None

    def delete(self, key: str) -> None:
        with _storage_errors(key):
            path = self._path(key)
            path.unlink(missing_ok=True)
            _remove_empty(path.parents, below=self._root)

    def clean(self, *, older_than_s: float) -> int:
        removed, oldest = 0, time.time() - older_than_s
        with _storage_errors(str(self._root)):
            for part in self._root.rglob(f"{PARTIAL}*"):
                if part.stat().st_mtime <= oldest:
                    part.unlink(missing_ok=True)
                    removed += 1
        return removed

    def check(self) -> None:
        try:
            _make_folders(self._root)
            probe = self._root / f"{PARTIAL}{secrets.token_hex(8)}"
            probe.touch()
            probe.unlink()
        except OSError as e:
            raise ConfigurationError(
                f"{self._root} is not writable: {e.strerror}; set IVMIX_DATA_DIR to a writable folder"
            ) from e

    def _path(self, key: str) -> Path:
        """Raises PermanentStorageError for a key that leads out of the root (`..`, absolute path, symbolic link)."""
        path = self._root / key
        if not key or "\0" in key or not path.resolve().is_relative_to(self._root) or path.resolve() == self._root:
            raise PermanentStorageError(f"key {key!r} is not a file inside the storage")
        return path


def _make_folders(folder: Path) -> None:
    """Create the folder and its parents durably."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        _sync_folder(path.parent)


def _copy_to_disk(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("xb") as write:
        shutil.copyfileobj(read, write)
        write.flush()
        os.fsync(write.fileno())


def _sync_folder(path: Path) -> None:
    """Make new names in the folder durable: syncing a file does not sync its directory entry."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_empty(folders: Iterable[Path], *, below: Path) -> None:
    """Remove empty folders, innermost first. Direct children of the root stay: a concurrent put may need them."""
    for folder in folders:
        if folder.parent == below:
            return
        try:
            folder.rmdir()
        except OSError:  # not empty, or already removed
            return


@contextmanager
def _storage_errors(key: str) -> Generator[None]:
    try:
        yield
    except OSError as e:
        raise StorageError(f"{key}: {e}") from e
