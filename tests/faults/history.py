"""The history of a run: what each process, client and observer saw, one JSON object per line."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class History:
    """Thread-safe writer. Every line has t (monotonic seconds), wall (unix seconds), who, what and the details."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("w")
        self._lock = threading.Lock()

    def record(self, who: str, what: str, **details: Any) -> None:
        line = {"t": round(time.monotonic(), 3), "wall": round(time.time(), 3), "who": who, "what": what, **details}
        with self._lock:
            if not self._file.closed:
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()

    def close(self) -> None:
        with self._lock:
            self._file.close()


def read(path: Path) -> list[Line]:
    return list(_lines(path))


def _lines(path: Path) -> Iterator[Line]:
    with path.open() as file:
        for line in file:
            yield json.loads(line)
