"""The S3 server's bad days: for as long as it is told, every request meets the same fault."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from tests.faulty_proxy import Fault, FaultyProxy

ONLY_PUT: tuple[Fault, ...] = ("flip",)


@dataclass
class Buckets(FaultyProxy):
    """`break_with` until `mend`: "drop" is a server that is down."""

    _now: Fault | None = None
    _healthy: threading.Event = field(default_factory=threading.Event)

    def break_with(self, fault: Fault) -> None:
        self._healthy.clear()
        self._now = fault

    def mend(self) -> None:
        self._now = None
        self._healthy.set()

    def next_fault(self, method: str) -> Fault | None:
        fault = self._now
        return None if fault in ONLY_PUT and method != "PUT" else fault

    def wait_for_release(self) -> None:
        """What hangs is hung up on when the server is back, or ends."""
        while not self._healthy.wait(0.2) and not self._released.is_set():
            pass
