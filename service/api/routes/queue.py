"""GET /v1/queue: queue depth, workers and estimated wait per model."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.auth import Reader, ServicesDep
from service.api.openapi.responses import success
from service.api.schemas import QueueReport, model_queue
from service.jobs.queue_and_waiting_time import queue_stats

router = APIRouter(prefix="/v1", tags=["queue"])


@router.get("/queue", summary="Queue status", responses=success("QueueReport"))
def report_queue(reader: Reader, services: ServicesDep) -> QueueReport:
    failures = services.loads.failures(services.models.ids())
    queues = (queue_stats(services.redis, services.store, model, owner=reader.owner) for model in services.models.ids())
    return QueueReport(data=[model_queue(stats, reader.visible_owner, failures.get(stats.model)) for stats in queues])
