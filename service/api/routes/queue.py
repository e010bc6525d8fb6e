"""GET /v1/queue: how busy each model is, for dashboards and for deciding whether to wait."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.auth import Reader, Wired
from service.api.errors import responses
from service.api.schemas import QueueReport, model_queue
from service.jobs.queue_stats import queue_stats

router = APIRouter(prefix="/v1", tags=["queue"])


@router.get("/queue", summary="What waits, what runs, who works", responses=responses(401, 403))
def report_queue(reader: Reader, services: Wired) -> QueueReport:
    loads = (queue_stats(services.redis, services.store, model) for model in services.models.ids())
    return QueueReport(data=[model_queue(load, reader.sees) for load in loads])
