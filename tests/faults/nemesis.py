"""The nemesis, in Jepsen's sense: injects the faults that a seed draws, spread over the jobs of the run."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from redis.exceptions import RedisError

from tests.faults.cluster import Cluster
from tests.faults.fault_kinds import ALL_KINDS, KINDS
from tests.faults.history import History
from tests.faults.injection import Inject, Injection, NoTarget

OVERLAP = 0.35  # probability that the next fault starts while this one lasts


class PlannedFault(NamedTuple):
    """`seed` seeds every random choice of this fault."""

    number: int
    kind: str
    pause_s: float
    overlaps: bool
    seed: str


def draw(seed: int, count: int, kinds: Sequence[str] = ()) -> list[PlannedFault]:
    """Draw `count` faults. The same seed gives the same faults, and all kinds occur almost equally often.

    Args:
        kinds: Draw only from these kinds; empty means all.
    """
    source = random.Random(seed)
    bag: list[str] = []
    plan: list[PlannedFault] = []
    for number in range(count):
        if not bag:
            bag = source.sample(list(kinds or KINDS), len(kinds or KINDS))
        pause_s, overlaps = source.uniform(0.2, 1.5), source.random() < OVERLAP
        plan.append(PlannedFault(number, bag.pop(), pause_s, overlaps, f"{seed}.{number}"))
    return plan


@dataclass
class Nemesis:
    """Injects `plan`. `progress` is the share of the plan done, 0 to 1.

    Args:
        has_reached: Whether the jobs have reached this share of the run, so that faults are spread over all jobs.
    """

    cluster: Cluster
    history: History
    plan: list[PlannedFault]
    has_reached: Callable[[float], bool]
    progress: float = 0.0
    _targets: dict[str, threading.Lock] = field(init=False)

    def __post_init__(self) -> None:
        self._targets = {kind.target: threading.Lock() for kind in ALL_KINDS.values()}

    def run(self, stopping: threading.Event) -> None:
        """Inject the whole plan, or until `stopping` is set. When it returns, everything is repaired."""
        threads: list[threading.Thread] = []
        for planned in self.plan:
            while not stopping.wait(planned.pause_s) and not self.has_reached(self.progress):
                pass
            if stopping.is_set():
                break
            thread = threading.Thread(target=self._inject, args=(planned,), name=planned.kind, daemon=True)
            thread.start()
            threads.append(thread)
            if not planned.overlaps:
                thread.join()
            self.progress = (planned.number + 1) / len(self.plan)
        for thread in threads:
            thread.join()
        self.progress = 1.0

    def _inject(self, planned: PlannedFault) -> None:
        kind = ALL_KINDS[planned.kind]
        with self._targets[kind.target]:
            self._break_and_repair(planned, kind.inject)

    def _break_and_repair(self, planned: PlannedFault, inject: Inject) -> None:
        recorded: dict[str, Any] = {}
        fault = {"number": planned.number, "kind": planned.kind}

        def record(**details: Any) -> None:
            recorded.update(details, at=round(time.monotonic(), 3))
            if "corrupted" in details:
                self.history.record("nemesis", "corrupted", id=details["corrupted"])

        steps = inject(Injection(self.cluster, random.Random(planned.seed), record))
        try:
            lasts_s = next(steps)
        except (NoTarget, RedisError, ProcessLookupError) as e:
            self.history.record("nemesis", "missed", **fault, why=type(e).__name__)
            return
        self.history.record("nemesis", "fault", **fault, lasts_s=round(lasts_s, 2), **recorded)
        time.sleep(lasts_s)
        with suppress(RedisError):  # Redis was killed by another fault; its restart repairs this one too
            next(steps, None)
        self.history.record("nemesis", "repaired", **fault, **recorded)
