"""Checks of what the processes leave in Redis: keys, webhooks, workers, maintenance."""

from __future__ import annotations

import math
from collections.abc import Iterable

from redis import Redis

from service.api_keys import KeyStore
from service.doctor.clocks import NOTABLE_S, clock_finding
from service.doctor.finding import Finding, Findings, ok, problem, warning
from service.jobs.keys import loads_key
from service.jobs.model_loads import ModelLoads
from service.jobs.outbox import Outbox
from service.jobs.queue_and_waiting_time import QueueStats, queue_stats
from service.jobs.store import JobStore
from service.maintenance.leader import LEADER
from service.redis_scripts import UntypedRedis
from service.settings import Settings
from service.signatures import SECRET_KEY
from service.webhooks.deliveries import DUE

OVERDUE_S = 300.0
OUTBOX_BACKLOG = 20
MIN_SILENCE_S = 20  # worker/parent/rq_worker.py: a worker is known as alive for its lease, and at least for this long


def check_keys(keys: KeyStore, settings: Settings) -> Findings:
    if settings.auth == "off":
        return
    found = [key for key, _ in keys.list()]
    active = [key for key in found if key.revoked_at is None]
    if not active and "auth" not in settings.model_fields_set and settings.is_loopback:
        message = "there is none; `ivmix up` on a loopback address needs none, `ivmix api` does"
        yield warning("API keys", message, "ivmix keys create --name NAME")
    elif not active:
        message = f"there is no {'active ' if found else ''}API key, and clients need one"
        yield problem("API keys", message, "ivmix keys create --name NAME")
    else:
        yield ok("API keys", f"{len(active)} active, {len(found) - len(active)} revoked")


def check_webhooks(redis: UntypedRedis, outbox: Outbox, now: float) -> Findings:
    secret = redis.get(SECRET_KEY)
    if secret is not None and len(secret) != 32:
        message = f"the secret of signed URLs and sessions has {len(secret)} bytes instead of 32"
        yield problem("signing secret", message, f"delete the key {SECRET_KEY}; links and sessions end then")
    backlog, overdue = outbox.depth(), redis.zcount(DUE, "-inf", now - OVERDUE_S)
    if backlog > OUTBOX_BACKLOG or overdue:
        message = f"{backlog} ended videos and {overdue} deliveries wait for a webhook dispatcher"
        yield problem("webhooks", message, "start `ivmix webhooks`, or look into its log")
    else:
        yield ok("webhooks", f"{backlog} ended videos wait for a dispatcher, no delivery is late")


def check_maintenance(redis: UntypedRedis) -> Findings:
    if redis.exists(LEADER):
        yield ok("maintenance", "a maintenance process leads")
    else:
        message = "no maintenance process runs: lost jobs stay lost and nothing expires"
        yield problem("maintenance", message, "start `ivmix maintenance`; `ivmix up` contains it")


def check_workers(redis: Redis, store: JobStore, models: Iterable[str], settings: Settings) -> Findings:
    untyped: UntypedRedis = redis
    names = list(models)
    failures = ModelLoads(redis).failures(names)
    for model in names:
        stats = queue_stats(redis, store, model)
        loading = untyped.hlen(loads_key(model))
        yield _workers_of(model, stats, failures.get(model), loading)
        for worker in stats.workers:
            if worker.last_seen is not None:
                yield from _worker_clock(untyped, worker.name, worker.last_seen, settings)


def _workers_of(model: str, stats: QueueStats, failure: str | None, loading: int) -> Finding:
    waiting = f"{stats.queued} videos wait"
    if failure:
        return problem("workers", f"{model}: no worker can load it: {failure}", f"run `ivmix models verify {model}`")
    if stats.workers:
        gpus = sum(worker.gpus for worker in stats.workers)
        on = f" on {gpus} GPUs" if gpus > len(stats.workers) else ""
        return ok("workers", f"{model}: {len(stats.workers)} alive{on}, {waiting}")
    if loading:
        return warning("workers", f"{model}: {loading} load their models, none is ready; {waiting}", "wait a minute")
    return problem("workers", f"{model}: no worker is alive; {waiting}", f"start `ivmix worker {model}`")


def _worker_clock(redis: UntypedRedis, name: str, last_seen: float, settings: Settings) -> Findings:
    """A heartbeat has the worker's time, and its expiry says by Redis' clock when that was."""
    left_ms, (seconds, _) = redis.pttl(f"rq:worker:{name}"), redis.time()
    silence_s = max(MIN_SILENCE_S, math.ceil(settings.lease_s))
    if 0 < left_ms <= 1000 * silence_s:
        skew = last_seen - (seconds - silence_s + left_ms / 1000)
        if abs(skew) > NOTABLE_S + 1:
            yield clock_finding(f"the clock of worker {name}", skew, precision_s=1.0)
