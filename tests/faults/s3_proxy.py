"""An S3 proxy that answers every request with the same fault until it is repaired."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from tests.faulty_proxy import Fault, FaultyProxy

ONLY_PUT: tuple[Fault, ...] = ("flip",)


@dataclass
class S3Proxy(FaultyProxy):
    """`break_with(fault)` lasts until `repair()`. "drop" stands for a server that is down."""

    _now: Fault | None = None
    _healthy: threading.Event = field(default_factory=threading.Event)

    def break_with(self, fault: Fault) -> None:
        self._healthy.clear()
        self._now = fault

    def repair(self) -> None:
        self._now = None
        self._healthy.set()

    def next_fault(self, method: str) -> Fault | None:
        fault = self._now
        return None if fault in ONLY_PUT and method != "PUT" else fault

    def wait_for_release(self) -> None:
        """Hanging requests are closed when the server is repaired or stops."""
        while not self._healthy.wait(0.2) and not self._released.is_set():
            pass
