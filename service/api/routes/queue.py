"""GET /v1/queue: queue depth, workers and estimated wait per model."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.auth import Reader, ServicesDep
from service.api.openapi.responses import success
from service.api.queue_snapshot import Audience, QueueSnapshot
from service.api.schemas import QueueReport

router = APIRouter(prefix="/v1", tags=["queue"])


@router.get("/queue", summary="Queue status", responses=success("QueueReport"))
def report_queue(reader: Reader, services: ServicesDep) -> QueueReport:
    audience = Audience.of(reader)
    return QueueSnapshot.read(services).reports(services, [audience])[audience]
