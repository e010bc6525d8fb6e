"""Which models no worker can load, and why.

A worker that has loaded its model is in RQ's registry of workers. One that has not keeps an entry here, which says
whether it is still loading or why it cannot. So one broken machine does not make a model unavailable that others serve.
"""

from __future__ import annotations

from collections.abc import Sequence

from redis import Redis

from service.errors import ModelUnavailable
from service.jobs.keys import loads_key
from service.redis_scripts import UntypedRedis, load_script

REPORT_S = 5.0  # between two reports of a worker
ENTRY_TTL_S = 30.0  # after the last report of a worker


class ModelLoads:
    def __init__(self, redis: Redis, *, entry_ttl_s: float = ENTRY_TTL_S) -> None:
        """`entry_ttl_s`: after how many seconds without a report a worker counts as gone."""
        self._redis: UntypedRedis = redis
        self._entry_ttl_ms = int(entry_ttl_s * 1000)
        self._report_script = load_script(redis, "service.jobs", "report_load")
        self._failures_script = load_script(redis, "service.jobs", "load_failures")

    def report(self, model: str, worker: str, reason: str) -> None:
        """Say that a worker has not loaded its model; `reason` is empty while it may still succeed."""
        self._report_script([loads_key(model)], [worker, reason, self._entry_ttl_ms])

    def forget(self, model: str, worker: str) -> None:
        """Delete the entry of a worker that has loaded its model, or ends."""
        self._redis.hdel(loads_key(model), worker)

    def require(self, model: str) -> None:
        """Raises ModelUnavailable if no worker can load the model."""
        if reason := self.failures([model]).get(model):
            raise ModelUnavailable(model, reason)

    def failures(self, models: Sequence[str]) -> dict[str, str]:
        """Return the reason by model, of those that at least one worker cannot load and no other has or is loading."""
        reasons = self._failures_script([], list(models))
        return {model: reason.decode() for model, reason in zip(models, reasons, strict=True) if reason}
