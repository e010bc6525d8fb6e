"""One run: start the cluster, run clients and nemesis together, wait until all is quiet, check the history."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from service.errors import StorageError
from service.jobs.keys import ACTIVE, INDEX
from service.jobs.outbox import OUTBOX
from service.storage import read
from service.storage.object_keys import VIDEOS
from service.webhooks.deliveries import DUE
from tests.certificates import Certificates
from tests.faults import aof
from tests.faults import history as histories
from tests.faults.checker import Violation, check
from tests.faults.clients import Clients
from tests.faults.cluster import Cluster
from tests.faults.history import History, Line
from tests.faults.nemesis import Nemesis, draw
from tests.faults.observer import Observer
from tests.swift import SwiftServer

STUCK_S = 90.0  # without any progress after the last repair
MAX_ATTEMPTS = 3
QUIET = (0, 0, 0, 0, 0)


@dataclass
class Run:
    """`folder` must be new and on a file system with extended attributes. It keeps the logs and the history.

    Args:
        kinds: Inject only these kinds of fault; empty means all.
        uses_sentinels: The queue is on a primary with replicas and Sentinels.
    """

    folder: Path
    jobs: int
    faults: int
    seed: int
    kinds: Sequence[str] = ()
    uses_sentinels: bool = False

    @property
    def path(self) -> Path:
        return self.folder / "history.jsonl"

    def go(self) -> tuple[list[Line], list[Violation]]:
        with SwiftServer(self.folder / "swift", Certificates.make(self.folder)) as swift:
            return self.against(swift)

    def against(self, swift: SwiftServer) -> tuple[list[Line], list[Violation]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {"jobs": self.jobs, "faults": self.faults, "seed": self.seed, "max_attempts": MAX_ATTEMPTS}
        with closing(History(self.path)) as history:
            history.record("run", "settings", **settings)
            with Cluster(self.folder, history, swift.url, self.uses_sentinels) as cluster, Observer(cluster, history):
                self._inject_faults(cluster, history)
                cluster.stop()
                self._record_final_state(cluster, history)
                cluster.valkey.kill()  # every acknowledged write is in the log
                for line in aof.transitions(cluster.valkey.folder / "appendonlydir"):
                    history.record("redis", "state", **line)
        lines = histories.read(self.path)
        return lines, check(lines)

    def _inject_faults(self, cluster: Cluster, history: History) -> None:
        plan = draw(self.seed, self.faults, self.kinds)
        clients = Clients(
            cluster.url,
            cluster.receiver.url,
            cluster.api_keys,
            history,
            self.jobs,
            self.seed,
            progress=lambda: nemesis.progress,
        )
        nemesis = Nemesis(cluster, history, plan, has_reached=clients.has_reached)
        thread = threading.Thread(target=nemesis.run, args=(threading.Event(),), name="nemesis", daemon=True)
        history.record("run", "begins")
        with clients:
            thread.start()
            thread.join()
            history.record("run", "faults over")
            is_quiet = _wait_until_quiet(cluster, clients)
        history.record("run", "quiet" if is_quiet else "stuck")

    def _record_final_state(self, cluster: Cluster, history: History) -> None:
        """All records and stored files, read without the proxies."""
        redis: Any = cluster.redis
        for member in redis.zrange(INDEX, 0, -1):
            job_id = member.decode()
            try:
                job = cluster.services.store.get(job_id)
            except ValueError:
                history.record("final", "unreadable", id=job_id)
                continue
            if job is not None:
                output = job.output.model_dump(mode="json") if job.output else None
                history.record("final", "record", id=job_id, state=job.state, attempt=job.attempt, output=output)
        for stored in cluster.services.storage.list(VIDEOS):
            try:
                content = read(cluster.services.storage, stored.key)
            except StorageError as e:
                history.record("final", "unreadable object", key=stored.key, why=str(e))
                continue
            sha256 = hashlib.sha256(content).hexdigest()
            history.record("final", "object", key=stored.key, size=len(content), sha256=sha256)


def _wait_until_quiet(cluster: Cluster, clients: Clients) -> bool:
    """Wait until all videos are accepted, terminal, seen by their client and delivered. False if progress stops."""
    last, since = None, time.monotonic()
    while (left := _remaining(cluster, clients)) != QUIET:
        now = time.monotonic()
        if left is not None and left != last:
            last, since = left, now
        if now - since > STUCK_S:
            return False
        time.sleep(0.5)
    return True


def _remaining(cluster: Cluster, clients: Clients) -> tuple[int, ...] | None:
    """Videos to accept, unseen ends, active jobs, outbox entries, due deliveries. None if Redis does not answer."""
    redis: Any = cluster.redis
    try:
        left = (redis.scard(ACTIVE), redis.xlen(OUTBOX), redis.zcard(DUE))
    except RedisError:
        return None
    return (clients.jobs - len(clients.accepted), clients.unfinished, *left)
