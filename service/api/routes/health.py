"""Am I alive, and should traffic come to me. The storage is not asked: status polling must survive its outages."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError

from service.api.errors import problem, responses
from service.errors import ServiceUnavailable
from service.wiring import Services

log = logging.getLogger("ivmix.api")
router = APIRouter(tags=["health"])


@router.get("/livez", summary="The process answers")
async def live() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", summary="Jobs can be taken", responses=responses(503), response_model=dict[str, str])
def ready(request: Request) -> Any:
    services: Services = request.app.state.services
    try:
        services.probe.set("ivm:ready", "1", ex=60)  # a write: a Redis with a full disk still answers PING
    except RedisError as e:
        log.warning("not ready: %s", type(e).__name__)
        return problem(503, "The job store cannot be written.", code=ServiceUnavailable.code)
    return JSONResponse({"status": "ok"})
