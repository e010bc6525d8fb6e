"""Removes what killed workers leave in RQ's registries.

RQ's workers would do this between two jobs, under a lock that stays held for 15 minutes if its owner dies.
"""

from __future__ import annotations

import time

from redis import Redis
from rq.worker_registration import clean_worker_registry

from service.jobs.rq_queues import all_queues
from service.redis_scripts import UntypedRedis

MAX_SILENCE_S = 3600.0  # an execution without a heartbeat for so long has no worker any more


def clean_registries(redis: Redis) -> None:
    """Remove dead workers and executions. It decides nothing: which worker has a job depends on leases only."""
    client: UntypedRedis = redis
    for queue in all_queues(redis):
        clean_worker_registry(queue)
        client.zremrangebyscore(queue.started_job_registry.key, 0, time.time() - MAX_SILENCE_S)
