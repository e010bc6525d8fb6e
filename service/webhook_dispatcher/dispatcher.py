"""The courier at work: one pump in this thread, workers in others. Needs services; knows no signals."""

from __future__ import annotations

import logging
import threading

from redis import Redis
from redis.exceptions import RedisError

from service.jobs.rq_queues import webhooks_queue
from service.process.heartbeat_file import HeartbeatFile
from service.webhook_dispatcher import tasks
from service.webhook_dispatcher.attempts import Attempts
from service.webhook_dispatcher.metrics import DispatcherMetrics
from service.webhook_dispatcher.pump import Pump
from service.webhook_dispatcher.rq_workers import work
from service.wire.video import Renderer
from service.wiring import Services, open_redis

log = logging.getLogger("ivmix.webhooks")

POLL_S = 0.5
AWAY_S = 2.0  # between two tries while Redis does not answer
STOP_GRACE_S = 5.0  # on top of the longest attempt


def pump_of(services: Services) -> Pump:
    webhooks = services.webhooks
    return Pump(
        outbox=webhooks.outbox,
        endpoints=webhooks.endpoints,
        deliveries=webhooks.deliveries,
        queue=webhooks_queue(services.redis),
        renderer=Renderer(services.settings, services.storage),
    )


def attempts_of(services: Services, metrics: DispatcherMetrics | None = None) -> Attempts:
    settings, webhooks = services.settings, services.webhooks
    return Attempts(
        endpoints=webhooks.endpoints,
        deliveries=webhooks.deliveries,
        sender=webhooks.sender,
        delays_s=settings.webhook_retry_delays_s,
        timeout_s=settings.webhook_timeout_s,
        share=max(1, settings.webhook_concurrency // 2),
        metrics=metrics or DispatcherMetrics(),
    )


def run(services: Services, stopping: threading.Event, metrics: DispatcherMetrics | None = None) -> None:
    """Until `stopping`; attempts under way are finished, up to their timeout."""
    settings = services.settings
    tasks.install(attempts_of(services, metrics))

    def connect() -> Redis:
        assert settings.redis_url is not None  # open_services refuses to go on without
        return open_redis(settings.redis_url, reply_timeout_s=None)

    workers = [
        threading.Thread(target=work, args=(connect, stopping), name=f"webhooks-{i}", daemon=True)
        for i in range(settings.webhook_concurrency)
    ]
    for thread in workers:
        thread.start()
    pump = pump_of(services)
    heartbeat_file = HeartbeatFile(settings.pulse_file)
    while not stopping.is_set():
        heartbeat_file.beat()
        has_died = not all(thread.is_alive() for thread in workers)
        if has_died and not stopping.is_set():
            stopping.set()
            raise RuntimeError("a worker has ended by itself; the log says why")  # whoever started us starts us again
        try:
            moved = pump.once()
        except RedisError as e:
            log.error("Redis is away: %s", type(e).__name__)
            stopping.wait(AWAY_S)
        else:
            stopping.wait(0 if moved else POLL_S)
    for thread in workers:
        thread.join(settings.webhook_timeout_s + STOP_GRACE_S)
