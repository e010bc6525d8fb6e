"""One run from start to table: everything up, clients and nemesis at once, then peace, then the verdict."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from service.errors import StorageError
from service.jobs.outbox import OUTBOX
from service.jobs.store import ACTIVE, INDEX
from service.storage import read
from service.storage.object_keys import VIDEOS
from service.webhooks.deliveries import DUE
from tests.certificates import Certificates
from tests.faults import aof, history
from tests.faults.checker import Violation, check
from tests.faults.clients import Clients
from tests.faults.cluster import House
from tests.faults.history import History, Line
from tests.faults.nemesis import Nemesis, draw
from tests.faults.observer import Observer
from tests.swift import SwiftServer

PEACE_S = 90.0  # without any progress, once nothing is broken any more: then it is not slow, it is stuck
MAX_ATTEMPTS = 3
QUIET = (0, 0, 0, 0, 0)


@dataclass
class Run:
    """`folder` must be new, on a file system with extended attributes; it keeps logs and history."""

    folder: Path
    jobs: int
    faults: int
    seed: int
    kinds: Sequence[str] = ()  # of faults; all if empty

    @property
    def path(self) -> Path:
        return self.folder / "history.jsonl"

    def go(self) -> tuple[list[Line], list[Violation]]:
        with SwiftServer(self.folder / "swift", Certificates.make(self.folder)) as swift:
            return self.against(swift)

    def against(self, swift: SwiftServer) -> tuple[list[Line], list[Violation]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        notes = History(self.path)
        notes.note("run", "settings", jobs=self.jobs, faults=self.faults, seed=self.seed, max_attempts=MAX_ATTEMPTS)
        with House(self.folder, notes, swift.url) as house, Observer(house, notes):
            self._fight(house, notes)
            house.stop()
            self._look(house, notes)
            house.valkey.kill()
            for line in aof.transitions(house.valkey.folder / "appendonlydir"):
                notes.note("redis", "state", **line)
        notes.close()
        lines = history.read(self.path)
        return lines, check(lines)

    def _fight(self, house: House, notes: History) -> None:
        clients = Clients(house.url, house.receiver.url, notes, self.jobs, self.seed, progress=lambda: nemesis.progress)
        nemesis = Nemesis(house, notes, draw(self.seed, self.faults, self.kinds), may_strike=clients.are_so_far)
        raging = threading.Thread(target=nemesis.rage, args=(threading.Event(),), name="nemesis", daemon=True)
        notes.note("run", "begins")
        with clients:
            raging.start()
            raging.join()
            notes.note("run", "peace")
            is_quiet = _wait_until_quiet(house, clients)
        notes.note("run", "quiet" if is_quiet else "not quiet")

    def _look(self, house: House, notes: History) -> None:
        """What there is in the end, seen past all proxies."""
        redis: Any = house.redis
        for member in redis.zrange(INDEX, 0, -1):
            job_id = member.decode()
            try:
                job = house.services.store.get(job_id)
            except ValueError:
                notes.note("final", "unreadable", id=job_id)
                continue
            if job is not None:
                output = job.output.model_dump(mode="json") if job.output else None
                notes.note("final", "record", id=job_id, state=job.state, attempt=job.attempt, output=output)
        for stored in house.services.storage.list(VIDEOS):
            try:
                content = read(house.services.storage, stored.key)
            except StorageError as e:
                notes.note("final", "unreadable object", key=stored.key, why=str(e))
                continue
            sha256 = hashlib.sha256(content).hexdigest()
            notes.note("final", "object", key=stored.key, size=len(content), sha256=sha256)


def _wait_until_quiet(house: House, clients: Clients) -> bool:
    """Every video was accepted, has ended, its client saw that, and every end was told. False if it is stuck."""
    last, since = None, time.monotonic()
    while (left := _left(house, clients)) != QUIET:
        now = time.monotonic()
        if left is not None and left != last:
            last, since = left, now
        if now - since > PEACE_S:
            return False
        time.sleep(0.5)
    return True


def _left(house: House, clients: Clients) -> tuple[int, ...] | None:
    """None: Redis does not answer."""
    redis: Any = house.redis
    try:
        left = (redis.scard(ACTIVE), redis.xlen(OUTBOX), redis.zcard(DUE))
    except RedisError:
        return None
    return (clients.jobs - len(clients.accepted), clients.watched, *left)
