"""What the storage costs, for Prometheus: a storage that times another one, and the figures that come of it; and how
processes that speak no HTTP serve their figures.

Names and meanings of all figures are in README.md, "Metrics"; a test holds the two equal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram

from service.errors import StorageError
from service.storage import Stored, VideoStorage

# A HEAD takes milliseconds, a film over a slow line minutes.
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)


@dataclass(frozen=True)
class StorageCall:
    operation: str
    seconds: float
    is_ok: bool


class StorageMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "ivmix_storage_seconds", "Calls of the storage", ("operation",), buckets=BUCKETS_S, registry=registry
        )
        self._errors = Counter(
            "ivmix_storage_errors", "Calls of the storage that failed", ("operation",), registry=registry
        )

    def observe(self, call: StorageCall) -> None:
        self._seconds.labels(call.operation).observe(call.seconds)
        if not call.is_ok:
            self._errors.labels(call.operation).inc()


class MeasuredStorage:
    """Passes everything on, and tells how long it took. Reading counts until the first byte."""

    def __init__(self, storage: VideoStorage, tell: Callable[[StorageCall], object]) -> None:
        self._storage, self._tell = storage, tell

    def put(self, path: Path, *, key: str, media_type: str, sha256: str) -> None:
        with self._timed("put"):
            self._storage.put(path, key=key, media_type=media_type, sha256=sha256)

    def open(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        with self._timed("open"):
            return self._storage.open(key, start, end)

    def size(self, key: str) -> int | None:
        with self._timed("size"):
            return self._storage.size(key)

    def holds(self, key: str, *, size_bytes: int, sha256: str) -> bool:
        with self._timed("holds"):
            return self._storage.holds(key, size_bytes=size_bytes, sha256=sha256)

    def list(self, prefix: str) -> Iterator[Stored]:
        return self._storage.list(prefix)  # page by page, at the reader's pace

    def url(self, key: str, *, filename: str, media_type: str) -> str | None:
        return self._storage.url(key, filename=filename, media_type=media_type)  # asks nobody

    def delete(self, key: str) -> None:
        with self._timed("delete"):
            self._storage.delete(key)

    def clean(self, *, older_than_s: float) -> int:
        with self._timed("clean"):
            return self._storage.clean(older_than_s=older_than_s)

    def check(self) -> None:
        self._storage.check()

    @contextmanager
    def _timed(self, operation: str) -> Generator[None]:
        began = time.perf_counter()
        try:
            yield
        except StorageError:
            self._tell(StorageCall(operation, time.perf_counter() - began, is_ok=False))
            raise
        self._tell(StorageCall(operation, time.perf_counter() - began, is_ok=True))
