"""GET /metrics for Prometheus: the API's own requests, and the queue as Redis knows it at that moment."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.jobs.queue_stats import QueueStats, queue_stats
from service.wiring import Services

router = APIRouter(tags=["health"])

# Status polls take milliseconds, a sync video minutes.
BUCKETS_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0)


class Metrics:
    """One registry per application: nothing global, so two in one process do not mix."""

    def __init__(self, services: Services) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ivmix_http_requests", "Answered requests", ("method", "route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "ivmix_http_request_seconds",
            "Until the answer begins",
            ("method", "route"),
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._children: dict[tuple[str, str, int], tuple[Histogram, Counter]] = {}
        self.registry.register(QueueCollector(services))
        for own in (ProcessCollector, PlatformCollector, GCCollector):
            own(registry=self.registry)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        known = self._children.get((method, route, status))
        if known is None:  # finding a child by its labels takes longer than counting
            known = self.seconds.labels(method, route), self.requests.labels(method, route, status)
            self._children[method, route, status] = known
        known[0].observe(seconds)
        known[1].inc()


class QueueCollector(Collector):
    def __init__(self, services: Services) -> None:
        self._services = services

    def describe(self) -> list[Metric]:
        return []  # else registering would ask Redis

    def collect(self) -> Iterator[Metric]:
        models = self._services.models.ids()
        try:
            loads = [queue_stats(self._services.redis, self._services.store, model) for model in models]
            memory = _memory(self._services.redis)
            outbox, pending = self._services.webhooks.outbox.depth(), self._services.webhooks.deliveries.pending()
        except RedisError:
            yield GaugeMetricFamily("ivmix_job_store_up", "Whether Redis answers", 0)
            return
        yield GaugeMetricFamily("ivmix_job_store_up", "Whether Redis answers", 1)
        yield GaugeMetricFamily("ivmix_job_store_memory_bytes", "Used by Redis for data", memory["used_memory"])
        yield GaugeMetricFamily("ivmix_job_store_max_memory_bytes", "0: no limit of its own", memory["maxmemory"])
        yield _gauge("ivmix_queue_waiting", "Videos that wait", {load.model: load.queued for load in loads})
        yield _gauge("ivmix_queue_running", "Videos that are worked on", {load.model: load.running for load in loads})
        waits = {load.model: wait for load in loads if (wait := load.estimated_wait_s) is not None}
        yield _gauge("ivmix_queue_estimated_wait_seconds", "Of a video asked for now", waits)
        yield _gauge(
            "ivmix_videos_per_hour", "Finished in the last hour", {load.model: load.videos_per_hour for load in loads}
        )
        yield _workers(loads)
        yield GaugeMetricFamily("ivmix_webhook_outbox", "Ended videos that no courier has looked at", outbox)
        yield GaugeMetricFamily("ivmix_webhook_pending", "Webhooks under way or waiting for another attempt", pending)


def _memory(redis: Any) -> dict[str, float]:
    """Nothing is evicted: when it is full, nothing is accepted."""
    return redis.info("memory")


def _gauge(name: str, text: str, values: dict[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=("model",))
    for model, value in values.items():
        family.add_metric((model,), value)
    return family


def _workers(loads: list[QueueStats]) -> Metric:
    family = GaugeMetricFamily("ivmix_workers", "Workers by what they do", labels=("model", "state"))
    for load in loads:
        states = [worker.state for worker in load.workers]
        for state in sorted({"idle", "busy", *states}):
            family.add_metric((load.model, state), states.count(state))
    return family


class Measured:
    """Counts and times every request under the route it met, so that ids do not become labels."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began = time.perf_counter()

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if route != "none" else "any"
                self._metrics.count(method, route, message["status"], time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, send_and_count)


_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


@router.get("/metrics", summary="Figures for Prometheus", response_class=Response, responses=_TEXT)
def show_metrics(request: Request) -> Response:
    metrics: Metrics = request.app.state.metrics
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(metrics.registry), headers={"content-type": media_type})
