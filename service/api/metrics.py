"""GET /metrics for Prometheus: requests of this process, and the queue as it is in Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily as Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from service.api.openapi.responses import success
from service.jobs.queue_and_waiting_time import QueueStats, queue_stats
from service.wiring import Services

router = APIRouter(tags=["health"])

# Status polls take milliseconds, create-and-wait takes minutes.
BUCKETS_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0)


class Metrics:
    """Has a separate registry, so that two applications in one process do not mix."""

    def __init__(self, services: Services) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ivmix_http_requests", "Requests answered", ("method", "route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "ivmix_http_request_seconds",
            "Time to the first byte of the response",
            ("method", "route"),
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._children: dict[tuple[str, str, int], tuple[Histogram, Counter]] = {}
        self.registry.register(QueueCollector(services))
        for own in (ProcessCollector, PlatformCollector, GCCollector):
            own(registry=self.registry)

    def record(self, method: str, route: str, status: int, seconds: float) -> None:
        known = self._children.get((method, route, status))
        if known is None:  # labels() costs more than counting
            known = self.seconds.labels(method, route), self.requests.labels(method, route, status)
            self._children[method, route, status] = known
        known[0].observe(seconds)
        known[1].inc()


class QueueCollector(Collector):
    def __init__(self, services: Services) -> None:
        self._services = services

    def describe(self) -> list[Metric]:
        return []  # otherwise registering would call `collect`

    def collect(self) -> Iterator[Metric]:
        services = self._services
        try:
            queues = [queue_stats(services.redis, services.store, model) for model in services.models.ids()]
            failures = services.loads.failures(services.models.ids())
            outbox, pending = services.webhooks.outbox.depth(), services.webhooks.deliveries.pending()
        except RedisError:
            yield Gauge("ivmix_job_store_up", "Whether Redis answers", 0)
            return
        yield Gauge("ivmix_job_store_up", "Whether Redis answers", 1)
        yield from self._memory()
        yield _by_model("ivmix_queue_waiting", "Queued videos", queues, lambda queue: queue.queued)
        yield _by_model("ivmix_queue_running", "Running videos", queues, lambda queue: queue.running)
        yield _by_model(
            "ivmix_queue_estimated_wait_seconds",
            "Estimated wait of a new video",
            queues,
            lambda queue: queue.estimated_wait_s,
        )
        yield _by_model(
            "ivmix_videos_per_hour", "Videos completed in the last hour", queues, lambda queue: queue.videos_per_hour
        )
        yield _workers(queues)
        yield _by_model(
            "ivmix_model_unavailable", "Whether no worker can load it", queues, lambda queue: queue.model in failures
        )
        yield Gauge("ivmix_webhook_outbox", "Ended videos not yet seen by the webhook dispatcher", outbox)
        yield Gauge("ivmix_webhook_pending", "Webhook deliveries in progress or waiting for a retry", pending)

    def _memory(self) -> Iterator[Metric]:
        """Nothing if this user may not call INFO, or the server does not tell these figures."""
        redis: Any = self._services.redis  # redis-py types every reply as sync or async
        try:
            memory: dict[str, float] = redis.info("memory")
        except RedisError:
            return
        if "used_memory" in memory:
            yield Gauge("ivmix_job_store_memory_bytes", "Memory used by Redis", memory["used_memory"])
        if "maxmemory" in memory:
            yield Gauge("ivmix_job_store_max_memory_bytes", "Memory limit of Redis; 0: none", memory["maxmemory"])


def _by_model(name: str, text: str, queues: list[QueueStats], value: Callable[[QueueStats], float | None]) -> Metric:
    family = Gauge(name, text, labels=("model",))
    for queue in queues:
        if (found := value(queue)) is not None:
            family.add_metric((queue.model,), found)
    return family


def _workers(queues: list[QueueStats]) -> Metric:
    family = Gauge("ivmix_workers", "Workers by state", labels=("model", "state"))
    for queue in queues:
        states = [worker.state for worker in queue.workers]
        for state in sorted({"idle", "busy", *states}):
            family.add_metric((queue.model, state), states.count(state))
    return family


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses=success(description="Prometheus text format", content={"text/plain": {"schema": {"type": "string"}}}),
)
def show_metrics(request: Request) -> Response:
    metrics: Metrics = request.app.state.metrics
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(metrics.registry), headers={"content-type": media_type})
