"""Liveness and readiness probes. Storage is not probed: status polls must keep working during its outages."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError

from service.api.errors import error_response
from service.api.openapi.responses import errors, success
from service.errors import ServiceUnavailable
from service.log_config import ONCE_A_MINUTE
from service.wiring import Services

log = logging.getLogger("ivmix.api")
router = APIRouter(tags=["health"])


@router.get("/livez", summary="Liveness probe", responses=success("Status"))
async def live() -> dict[str, str]:
    return {"status": "ok"}


_READY: dict[str, Any] = {"responses": success("Status") | errors(503), "response_model": dict[str, str]}


@router.get("/health", summary="Readiness probe, as other servers name it", name="health", **_READY)
@router.get("/readyz", summary="Readiness probe", **_READY)
def ready(request: Request) -> Any:
    services: Services = request.app.state.services
    try:
        services.probe.set("ivm:ready", "1", ex=60)  # a Redis with a full disk still answers PING
    except RedisError as e:
        log.warning("not ready: %s", type(e).__name__, extra=ONCE_A_MINUTE)
        return error_response(503, "The job store does not accept writes.", code=ServiceUnavailable.code)
    return JSONResponse({"status": "ok"})
