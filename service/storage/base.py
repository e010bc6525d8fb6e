"""What every storage does, and the few things that follow from it alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from service.errors import PermanentStorageError


@dataclass(frozen=True)
class StoredObject:
    key: str
    size_bytes: int
    modified_at: float  # unix seconds, by the storage's clock; some servers know whole seconds only


class VideoStorage(Protocol):
    """Every method raises StorageError when the storage does not do its part."""

    def put(self, path: Path, *, key: str, media_type: str, sha256: str) -> None:
        """All of the file or nothing appears under the key; the same key again replaces it.

        Raises PermanentStorageError if the file is not what `sha256` (hex) says: another try would end the same.
        """
        ...

    def open(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes start..end, `end` not included, in pieces. A missing key raises at the call, not later."""
        ...

    def size(self, key: str) -> int | None:
        """In bytes; None if there is nothing under the key."""
        ...

    def matches(self, key: str, *, size_bytes: int, sha256: str) -> bool:
        """Whether exactly this lies under the key."""
        ...

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Everything whose key begins so, sorted by key. What is being put right now is not there yet."""
        ...

    def url(self, key: str, *, filename: str, media_type: str) -> str | None:
        """Where a browser can fetch it for a while without our help; None if we have to serve it ourselves."""
        ...

    def delete(self, key: str) -> None:
        """A key that is not there is fine."""
        ...

    def clean(self, *, older_than_s: float) -> int:
        """Remove what puts left behind that were killed so long ago; how many they were."""
        ...

    def check(self) -> None:
        """Write, list and delete once. Raises ConfigurationError, which names the setting, if we are refused, and
        StorageError if the storage does not answer, which may pass."""
        ...


def read(storage: VideoStorage, key: str) -> bytes:
    """The whole of something small."""
    return b"".join(storage.open(key))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_sha256(path: Path, sha256: str) -> None:
    """Raises PermanentStorageError if the file is not (any more) what it was said to be."""
    try:
        found = sha256_of(path)
    except OSError as e:
        raise PermanentStorageError(f"{path.name} cannot be read: {e.strerror}") from e
    if found != sha256:
        raise PermanentStorageError(
            f"{path.name} changed on its way to the storage: sha256 {found} instead of {sha256}"
        )
