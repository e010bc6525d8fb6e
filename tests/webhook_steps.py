"""The steps from the end of a job to a signed POST, each taken by the test itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from service.jobs.model import EVENT_TYPES, EventType, Job
from service.jobs.rq_queues import generate_queue
from service.webhook_dispatcher.attempt import AttemptRunner
from service.webhook_dispatcher.fan_out import FanOut
from service.webhooks.deliveries import DUE, Delivery
from service.webhooks.endpoints import Endpoint
from service.webhooks.sender import Sender
from service.wire.video import Renderer
from service.wiring import Services
from tests.factories import complete_job, create_job


def with_sender(runner: AttemptRunner, sender: Sender) -> AttemptRunner:
    return replace(runner, webhooks=replace(runner.webhooks, sender=sender))


def with_delays(runner: AttemptRunner, delays_s: tuple[float, ...]) -> AttemptRunner:
    return replace(runner, settings=runner.settings.model_copy(update={"webhook_retry_delays_s": delays_s}))


def created(services: Services, **over: Any) -> Job:
    return create_job(services.store, generate_queue(services.redis, "demo"), **over)


def completed(services: Services, **over: Any) -> Job:
    job = created(services, **over)
    assert services.store.start(job.id, "e1")
    assert complete_job(services.store, job.id, "e1")
    return job


def endpoint_at(
    services: Services, url: str, types: tuple[EventType, ...] = EVENT_TYPES, owner: str = "local"
) -> Endpoint:
    return services.webhooks.endpoints.create(owner, name="test", url=url, event_types=types)


def fan_out(services: Services) -> None:
    FanOut(services.webhooks, Renderer(services.settings, services.storage)).run_once()


def deliveries(services: Services, video_id: str | None = None, owner: str = "local") -> list[Delivery]:
    return services.webhooks.deliveries.list(owner, video_id=video_id, limit=100)[0]


def only(services: Services) -> Delivery:
    (delivery,) = deliveries(services)
    return delivery


def come_due(services: Services, delivery: Delivery) -> None:
    """Let the time until the next attempt pass."""
    services.redis.zadd(DUE, {delivery.id: 0})
