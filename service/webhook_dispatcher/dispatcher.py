"""The dispatcher's loop: turn the outbox into deliveries, claim what is due, and make the attempts in threads."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from redis.exceptions import RedisError

from service.log_config import ONCE_A_MINUTE
from service.process.heartbeat_file import HeartbeatFile
from service.webhook_dispatcher.attempt import AttemptRunner
from service.webhook_dispatcher.fan_out import FanOut
from service.webhook_dispatcher.metrics import DispatcherMetrics
from service.webhooks.deliveries import Claim
from service.wire.video import Renderer
from service.wiring import Services

log = logging.getLogger("ivmix.webhooks")

POLL_S = 0.5
REDIS_RETRY_S = 2.0

Attempts = dict[Future[None], str]  # with the owner of each


def run(services: Services, stopping: threading.Event, metrics: DispatcherMetrics | None = None) -> None:
    """Dispatch until `stopping` is set, then finish the attempts in progress.

    At most as many deliveries are claimed as threads are idle, so each claimed one starts at once, and no owner gets
    all threads. A process that dies loses nothing: its claims expire, and another dispatcher takes them.

    Raises:
        RuntimeError: a thread ended with something that no attempt may raise. The caller is to exit and be restarted.
    """
    settings, webhooks = services.settings, services.webhooks
    fan_out = FanOut(webhooks, Renderer(settings, services.storage))
    runner = AttemptRunner(settings, webhooks, metrics or DispatcherMetrics(), services.tracing)
    heartbeat_file = HeartbeatFile.of_process(settings.pulse_file)
    in_progress: Attempts = {}
    with ThreadPoolExecutor(settings.webhook_concurrency, thread_name_prefix="webhooks") as pool:
        while not stopping.is_set():
            heartbeat_file.beat()
            try:
                is_busy = fan_out.run_once() > 0
                by_owner = Counter(in_progress.values())
                claimed = webhooks.deliveries.claim(settings.webhook_concurrency, in_progress=by_owner)
            except RedisError as e:
                log.error("Redis is unreachable: %s", type(e).__name__, extra=ONCE_A_MINUTE)
                stopping.wait(REDIS_RETRY_S)
                continue
            in_progress |= {pool.submit(_attempt, runner, claim): claim.owner for claim in claimed}
            in_progress = _pause(in_progress, stopping, 0.0 if is_busy or claimed else POLL_S)


def _attempt(runner: AttemptRunner, claim: Claim) -> None:
    """A failure concerns this delivery only: it becomes due again."""
    try:
        runner.run(claim.delivery_id, claim.attempts_made)
    except RedisError as e:
        log.error("%s: Redis is unreachable (%s); trying again later", claim.delivery_id, type(e).__name__)
    except Exception:
        log.exception("%s: attempt failed with an internal error; trying again later", claim.delivery_id)


def _pause(in_progress: Attempts, stopping: threading.Event, timeout_s: float) -> Attempts:
    """Wait until an attempt has ended, at most `timeout_s`; returns those still in progress."""
    if not in_progress:
        stopping.wait(timeout_s)
        return in_progress
    ended, running = wait(in_progress, timeout_s, FIRST_COMPLETED)
    for future in ended:
        if error := future.exception():
            raise RuntimeError("a webhook thread ended unexpectedly") from error
    return {future: in_progress[future] for future in running}
