"""Fails the jobs that wait for a model which no worker can load."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from redis import Redis
from redis.exceptions import RedisError

from service.jobs.job_errors import model_unavailable
from service.jobs.model_loads import ModelLoads
from service.jobs.rq_queues import all_queues, generate_queue, is_generate_queue, model_of
from service.jobs.store import JobStore

log = logging.getLogger("ivmix.maintenance")

GRACE_S = 10.0  # files that are being replaced, and workers that have just lost Redis, are soon back
BATCH = 100  # jobs between two looks at the model


class UnavailableModels:
    """Several instances may run at the same time.

    Args:
        grace_s: seconds for which a model must be unavailable before its jobs fail.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        redis: Redis,
        store: JobStore,
        loads: ModelLoads,
        *,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis, self._store, self._loads = redis, store, loads
        self._grace_s, self._clock = grace_s, clock
        self._unavailable_since: dict[str, float] = {}

    def run_once(self) -> None:
        """Fail the queued jobs of every model that has been unavailable for `grace_s`."""
        try:
            now = self._clock()
            models = [model_of(queue.name) for queue in all_queues(self._redis) if is_generate_queue(queue.name)]
            failures = self._loads.failures(models)
            self._unavailable_since = {model: self._unavailable_since.get(model, now) for model in failures}
            for model, since in self._unavailable_since.items():
                if now - since >= self._grace_s:
                    self._fail_jobs(model)
        except RedisError:
            self._unavailable_since.clear()  # workers could not report either, and get the whole time again
            raise

    def _fail_jobs(self, model: str) -> None:
        """The last one first, because taking a job out of its queue moves those behind it."""
        ids = generate_queue(self._redis, model).job_ids
        while ids and (reason := self._loads.failures([model]).get(model)):
            last, ids = ids[-BATCH:], ids[:-BATCH]
            error = model_unavailable(model, reason)
            failed = sum(self._store.fail_queued(job_id, error) for job_id in reversed(last))
            log.error("%d queued jobs failed: model %s cannot be loaded: %s", failed, model, reason)
