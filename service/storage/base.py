"""The storage protocol, and helpers that work with every implementation."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from service.errors import PermanentStorageError


@dataclass(frozen=True)
class StoredObject:
    key: str
    size_bytes: int
    modified_at: float  # Unix seconds by the storage's clock; some servers round to whole seconds


class VideoStorage(Protocol):
    """Every method raises StorageError if the storage cannot be reached or rejects the request."""

    def put(self, path: Path, *, key: str, media_type: str, sha256: str) -> None:
        """Store the file atomically under `key`, replacing any earlier object.

        Args:
            sha256: Expected checksum of the file, in hex.

        Raises:
            PermanentStorageError: the file is unreadable or does not match `sha256`, so retrying is useless.
        """
        ...

    def open(self, key: str, start: int = 0, end: int | None = None) -> Generator[bytes]:
        """Read bytes `start` (inclusive) to `end` (exclusive) in chunks. Raises at once if the key does not exist.

        A caller that does not read to the end closes it.
        """
        ...

    def size(self, key: str) -> int | None:
        """Size in bytes, or None if the key does not exist."""
        ...

    def matches(self, key: str, *, size_bytes: int, sha256: str) -> bool:
        """Whether the key exists with this size and checksum."""
        ...

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Objects whose key starts with `prefix`, sorted by key. Uploads in progress are not included."""
        ...

    def url(self, key: str, *, filename: str, media_type: str) -> str | None:
        """A temporary download URL, or None if the API has to serve the bytes itself."""
        ...

    def delete(self, key: str) -> None:
        """Succeeds if the key does not exist."""
        ...

    def clean(self, *, older_than_s: float) -> int:
        """Remove the remains of uploads that were interrupted this long ago. Returns how many were removed."""
        ...

    def check(self) -> None:
        """Write, list and delete a test object.

        Raises:
            ConfigurationError: the storage rejects the request; the message names the setting to correct.
            StorageError: the storage is unreachable, which may be temporary.
        """
        ...


def read(storage: VideoStorage, key: str) -> bytes:
    """The whole object in memory; for small objects."""
    return b"".join(storage.open(key))


def started(chunks: Generator[bytes]) -> Generator[bytes]:
    """The chunks after the first, empty one of a generator.

    Closing a generator that has not begun runs none of its code, and would leave its file open.
    """
    next(chunks)
    return chunks


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_sha256(path: Path, sha256: str) -> None:
    """Raises PermanentStorageError if the file is unreadable or has another checksum."""
    try:
        found = sha256_of(path)
    except OSError as e:
        raise PermanentStorageError(f"{path.name} cannot be read: {e.strerror}") from e
    if found != sha256:
        raise PermanentStorageError(f"{path.name} changed before it was stored: sha256 {found} instead of {sha256}")
