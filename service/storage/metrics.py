"""Prometheus metrics of storage calls. docs/operations.md lists the names; a test holds the two equal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Histogram

from service.errors import StorageError
from service.storage.base import VideoStorage

# From a HEAD request (milliseconds) to the upload of a video over a slow line (minutes).
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)

# Timed method of VideoStorage -> value of the `operation` label. `list` is left out because it is read page by page at
# the caller's pace, `url` because it makes no request, `clean` because only maintenance calls it, which has no metrics.
OPERATIONS = {
    "put": "put",
    "open": "open",
    "size": "size",
    "matches": "holds",  # the label value that dashboards already use
    "delete": "delete",
}


@dataclass(frozen=True)
class StorageCall:
    operation: str
    seconds: float
    is_ok: bool


class StorageMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "ivmix_storage_seconds", "Duration of storage calls", ("operation",), buckets=BUCKETS_S, registry=registry
        )
        self._errors = Counter("ivmix_storage_errors", "Failed storage calls", ("operation",), registry=registry)

    def observe(self, call: StorageCall) -> None:
        self._seconds.labels(call.operation).observe(call.seconds)
        if not call.is_ok:
            self._errors.labels(call.operation).inc()


def measured(storage: VideoStorage, observe: Callable[[StorageCall], object]) -> VideoStorage:
    """The same storage, with `observe` called after each call. `open` is timed until it returns, not while reading."""
    return cast(VideoStorage, _TimedCalls(storage, observe))


class _TimedCalls:
    def __init__(self, storage: VideoStorage, observe: Callable[[StorageCall], object]) -> None:
        self._storage, self._observe = storage, observe

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._storage, name)
        operation = OPERATIONS.get(name)
        if operation is None:
            return method

        @wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                result = method(*args, **kwargs)
            except StorageError:
                self._observe(StorageCall(operation, time.perf_counter() - began, is_ok=False))
                raise
            self._observe(StorageCall(operation, time.perf_counter() - began, is_ok=True))
            return result

        return timed
