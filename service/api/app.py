"""Put the application together around the services it is given. Opens nothing, keeps nothing global."""

from __future__ import annotations

import re
import secrets
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import errors as problems
from service.api import metrics
from service.api.metrics import Measured, Metrics
from service.api.open_requests import OpenRequests
from service.api.openapi.schema import ABOUT, TAGS, contract
from service.api.polls import PollRoute, Polls
from service.api.rate_limits import RateLimiter
from service.api.routes import create_video as creation
from service.api.routes import create_video_sync as sync
from service.api.routes import docs, events, health, models, videos
from service.api.routes import queue as queue_report
from service.api.routes import webhooks as webhook_routes
from service.log_config import log_context
from service.wiring import Services

# What a page of another origin may read beside the body.
EXPOSED = ("x-request-id", "retry-after", "idempotent-replayed", "openai-poll-after-ms", "x-video-id", "content-range")


def create_app(services: Services) -> FastAPI:
    """Raises ConfigurationError if the settings would let strangers in."""
    settings = services.settings
    settings.require_auth_on_public_host()
    app = FastAPI(
        title="ivmix",
        version="1",
        summary="Text to video with the IV-Mixed Sampler, in the wire format of OpenAI's Videos API.",
        description=ABOUT,
        openapi_tags=TAGS,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.services = services
    app.state.rate_limiter = RateLimiter(services.redis)
    app.state.held = OpenRequests(settings.max_held)
    app.state.metrics = Metrics(services)
    app.state.polls = Polls(services.store.show_many)
    app.router.routes.append(PollRoute("/v1/videos/{video_id}", videos.poll, methods=["GET"], include_in_schema=False))
    for part in (videos, creation, events, sync, models, queue_report, webhook_routes):
        app.include_router(part.router, responses=problems.responses(500, 503))
    app.include_router(health.router)
    if settings.metrics_port is None:
        app.include_router(metrics.router)
    docs.install(app)
    problems.install(app)
    app.add_middleware(Measured, metrics=app.state.metrics)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=EXPOSED,
        )
    app.add_middleware(RequestId)
    app.openapi = lambda: contract(app)
    return app


def create_operations_app(public: FastAPI) -> FastAPI:
    """Health and metrics of the public application, for a port of their own that clients need not reach."""
    app = FastAPI(title="ivmix operations", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.services = public.state.services
    app.state.metrics = public.state.metrics
    app.include_router(health.router)
    app.include_router(metrics.router)
    problems.install(app)
    app.add_middleware(RequestId)
    return app


class RequestId:
    """Give every request an id, the client's if it is a sane one; send it back, and log it with errors."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if re.fullmatch(r"[\w.-]{1,128}", given, re.ASCII) else f"req_{secrets.token_hex(16)}"
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        named = re.match(r"/v1/videos/(video_[0-9a-f]{32})(?![^/])", scope["path"])
        with log_context(request_id=request_id, **({"video_id": named[1]} if named else {})):
            await self._app(scope, receive, send_with_id)
