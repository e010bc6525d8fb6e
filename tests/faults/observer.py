"""Polls the records of all unfinished jobs directly in Redis and records changes, to measure recovery times.

A change that lasts shorter than one poll can be missed, so the checker uses the AOF instead.
"""

from __future__ import annotations

import json
import threading
from typing import Any

from redis.exceptions import RedisError

from service.jobs.keys import ACTIVE, job_key
from tests.faults.cluster import Cluster
from tests.faults.history import History

POLL_S = 0.1
FIELDS = ("state", "execution_id", "attempt")


class Observer:
    """A context that polls in a thread."""

    def __init__(self, cluster: Cluster, history: History) -> None:
        self._redis: Any = cluster.redis
        self._history = history
        self._seen: dict[str, list[Any]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)

    def __enter__(self) -> Observer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stopping.wait(POLL_S):
            try:
                self._poll()
            except RedisError:
                continue

    def _poll(self) -> None:
        ids = {member.decode() for member in self._redis.smembers(ACTIVE)} | self._unfinished()
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hmget(job_key(job_id), *FIELDS)
            records = pipe.execute()
        for job_id, record in zip(ids, records, strict=True):
            values = [_value(value) for value in record]
            if self._seen.get(job_id) != values:
                self._seen[job_id] = values
                self._history.record("observer", "job", id=job_id, **dict(zip(FIELDS, values, strict=True)))

    def _unfinished(self) -> set[str]:
        return {job_id for job_id, (state, *_) in self._seen.items() if state in ("queued", "running")}


def _value(value: bytes | None) -> Any:
    try:
        return json.loads(value or b"null")
    except ValueError:
        return "unreadable"
