"""Finished videos as files or as S3 objects, behind one protocol. Knows keys and bytes; nothing of jobs."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from service.errors import StorageError

CHUNK_BYTES = 256 * 1024
PART = ".part-"  # begins the name of a file that is being written


@dataclass(frozen=True)
class Stored:
    key: str
    size_bytes: int
    modified_at: float  # unix seconds, by the storage's clock


class VideoStorage(Protocol):
    """Every method raises StorageError when the storage does not do its part."""

    def put(self, path: Path, *, key: str, media_type: str, sha256: str) -> None:
        """All of the file or nothing appears under the key; the same key again replaces it."""
        ...

    def open(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes start..end, `end` not included, in pieces. A missing key raises at the call, not later."""
        ...

    def size(self, key: str) -> int | None:
        """In bytes; None if there is nothing under the key."""
        ...

    def url(self, key: str, *, filename: str, media_type: str) -> str | None:
        """Where a browser can fetch it for a while without our help; None if we have to serve it ourselves."""
        ...

    def list(self, prefix: str) -> Iterator[Stored]:
        """Everything whose key begins so, sorted by key. What is being put right now is not there yet."""
        ...

    def delete(self, key: str) -> None:
        """A key that is not there is fine."""
        ...


class FileStorage:
    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def put(self, path: Path, *, key: str, media_type: str, sha256: str) -> None:  # noqa: ARG002  # files have no type
        target = self._path(key)
        with _as_storage_error(key, OSError):
            _check_digest(path, sha256)
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.parent / f"{PART}{secrets.token_hex(8)}"
            try:
                _copy_to_disk(path, part)
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
            _sync_directory(target.parent)

    def open(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        with _as_storage_error(key, OSError):
            file = self._path(key).open("rb")
            file.seek(start)
            left = (file.seek(0, os.SEEK_END) if end is None else end) - start
            file.seek(start)

        def pieces() -> Iterator[bytes]:
            nonlocal left
            with file:
                while left > 0 and (piece := file.read(min(CHUNK_BYTES, left))):
                    left -= len(piece)
                    yield piece

        return pieces()

    def size(self, key: str) -> int | None:
        with _as_storage_error(key, OSError):
            path = self._path(key)
            return path.stat().st_size if path.is_file() else None

    def url(self, key: str, *, filename: str, media_type: str) -> str | None:  # noqa: ARG002  # never one of our own
        return None

    def list(self, prefix: str) -> Iterator[Stored]:
        self._path(f"{prefix}x")
        folder = self._root / prefix.rpartition("/")[0]
        with _as_storage_error(prefix, OSError):
            paths = [path for path in folder.rglob("*") if not path.name.startswith(PART) and path.is_file()]
        for path in sorted(paths):
            key = path.relative_to(self._root).as_posix()
            if key.startswith(prefix):
                about = path.stat()
                yield Stored(key, about.st_size, about.st_mtime)

    def delete(self, key: str) -> None:
        with _as_storage_error(key, OSError):
            path = self._path(key)
            path.unlink(missing_ok=True)
            _remove_empty(path.parents, below=self._root)

    def _path(self, key: str) -> Path:
        """Raises StorageError for a key that leads out of the root (.., absolute, a link)."""
        path = self._root / key
        if not key or "\0" in key or not path.resolve().is_relative_to(self._root) or path.resolve() == self._root:
            raise StorageError(f"key {key!r} does not name a file inside the storage")
        return path


class S3Storage:
    def __init__(self, client: Any, *, bucket: str, presign_seconds: int) -> None:  # boto3 has no types
        self._client = client
        self._bucket = bucket
        self._presign_seconds = presign_seconds

    def put(self, path: Path, *, key: str, media_type: str, sha256: str) -> None:
        with _as_storage_error(key, OSError, BotoCoreError, ClientError):
            _check_digest(path, sha256)
            with path.open("rb") as source:
                self._client.put_object(
                    Bucket=self._bucket, Key=key, Body=source, ContentType=media_type, Metadata={"sha256": sha256}
                )
        # Not every S3 checks what arrives; a cut upload is the fault that happens.
        if (size := self.size(key)) != path.stat().st_size:
            raise StorageError(f"{key}: {size} bytes arrived of {path.stat().st_size}")

    def open(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        if end is not None and end <= start:
            return iter(())
        with _as_storage_error(key, BotoCoreError, ClientError):
            last = "" if end is None else str(end - 1)
            answer = self._client.get_object(Bucket=self._bucket, Key=key, Range=f"bytes={start}-{last}")

        def pieces() -> Iterator[bytes]:
            with _as_storage_error(key, BotoCoreError, ClientError), closing(answer["Body"]) as body:
                yield from body.iter_chunks(CHUNK_BYTES)

        return pieces()

    def size(self, key: str) -> int | None:
        try:
            with _as_storage_error(key, BotoCoreError):
                return int(self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"])
        except ClientError as e:
            response: Any = e.response  # boto3 has no types
            if response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise StorageError(f"{key}: {e}") from e

    def url(self, key: str, *, filename: str, media_type: str) -> str | None:
        return self._client.generate_presigned_url(
            "get_object",
            Params={
                "Bucket": self._bucket,
                "Key": key,
                "ResponseContentType": media_type,
                "ResponseContentDisposition": f'inline; filename="{filename}"',
            },
            ExpiresIn=self._presign_seconds,
        )

    def list(self, prefix: str) -> Iterator[Stored]:
        with _as_storage_error(prefix, BotoCoreError, ClientError):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
                for entry in page.get("Contents", ()):
                    yield Stored(entry["Key"], entry["Size"], entry["LastModified"].timestamp())

    def delete(self, key: str) -> None:
        with _as_storage_error(key, BotoCoreError, ClientError):
            self._client.delete_object(Bucket=self._bucket, Key=key)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_digest(path: Path, sha256: str) -> None:
    if (found := sha256_of(path)) != sha256:
        raise StorageError(f"{path.name} changed on its way to the storage: sha256 {found} instead of {sha256}")


def _remove_empty(folders: Iterable[Path], *, below: Path) -> None:
    """Nearest first. The folders directly in the root stay: somebody may just be putting a file there."""
    for folder in folders:
        if folder.parent == below or not folder.is_dir() or any(folder.iterdir()):
            return
        folder.rmdir()


def _copy_to_disk(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("xb") as write:
        shutil.copyfileobj(read, write)
        write.flush()
        os.fsync(write.fileno())


def _sync_directory(path: Path) -> None:
    """A rename is on the disk only when its directory is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _as_storage_error(key: str, *kinds: type[Exception]) -> Generator[None]:
    try:
        yield
    except kinds as e:
        raise StorageError(f"{key}: {e}") from e
