"""Builds the FastAPI application from open services."""

from __future__ import annotations

from fastapi import FastAPI, Security
from fastapi.middleware.cors import CORSMiddleware

from service.api import metrics
from service.api.auth import API_KEY, API_KEY_HEADER, SESSION
from service.api.contract import Contract, QueryCheck
from service.api.errors import add_error_handlers
from service.api.event_hub import EventHub
from service.api.metrics import Metrics
from service.api.middleware import RequestId, RequestMetrics
from service.api.open_requests import OpenRequests
from service.api.openapi.document import DESCRIPTION, TAGS, build_openapi
from service.api.openapi.responses import errors
from service.api.origin_check import OriginCheck
from service.api.polls import PollReader
from service.api.rate_limits import RateLimiter
from service.api.request_path import HeadRequests, RequestPath
from service.api.request_traces import RequestTraces
from service.api.routes import (
    cancel_videos,
    create_video,
    create_video_sync,
    docs,
    download_video,
    estimate_video,
    events,
    health,
    models,
    page,
    queue,
    send_test_event,
    session,
    usage,
    video_events,
    videos,
    webhooks,
)
from service.api.security_headers import SecurityHeaders
from service.api.uploads import Uploads
from service.settings import Settings
from service.wiring import Services

# Response headers that scripts of another origin may read.
CORS_EXPOSED_HEADERS = (
    "x-request-id",
    "retry-after",
    "idempotent-replayed",
    "openai-poll-after-ms",
    "x-video-id",
    "content-range",
)


def create_app(services: Services) -> FastAPI:
    """Raises ConfigurationError if the settings would expose the API without authentication."""
    settings = services.settings
    settings.require_auth_on_public_host()
    polls = PollReader(services)
    app = FastAPI(
        title="ivmix",
        version="1",
        summary="Text to video with the IV-Mixed Sampler, in the wire format of OpenAI's Videos API.",
        description=DESCRIPTION,
        openapi_tags=TAGS,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # RequestPath answers both forms
        generate_unique_id_function=lambda route: route.name,
        webhooks=webhooks.events,
        lifespan=polls.lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # RequestTraces and RequestMetrics do it
    )
    app.state.services = services
    app.state.rate_limiter = RateLimiter(services.redis, webhooks_per_minute=settings.webhook_sends_per_minute)
    app.state.open_requests = OpenRequests(settings)
    app.state.uploads = Uploads(settings)
    app.state.metrics = Metrics(services)
    app.state.contract = Contract(app)
    app.state.event_hub = EventHub(services)
    app.state.polls = polls
    _add_routes(app, settings)
    add_error_handlers(app)
    if services.tracing.is_on:
        app.add_middleware(RequestTraces, tracing=services.tracing)
    app.add_middleware(RequestMetrics, metrics=app.state.metrics)
    _add_request_checks(app, settings)
    app.add_middleware(RequestId)
    app.add_middleware(RequestPath, prefix=settings.root_path)
    app.openapi = lambda: build_openapi(app)
    return app


def _add_routes(app: FastAPI, settings: Settings) -> None:
    modules = (
        create_video,
        cancel_videos,
        estimate_video,
        videos,
        events,
        video_events,
        download_video,
        create_video_sync,
        models,
        queue,
        usage,
        session,
        webhooks,
        send_test_event,
    )
    is_open = settings.auth == "off"
    ways = [] if is_open else [Security(way) for way in (API_KEY, API_KEY_HEADER, SESSION)]
    common = errors(500, 503) if is_open else errors(401, 403, 500, 503)
    videos.add_polls(app, dependencies=ways, responses=common)
    for module in modules:
        app.include_router(module.router, dependencies=ways, responses=common)
    app.include_router(health.router)
    if settings.metrics_port is None:
        app.include_router(metrics.router)
    docs.add_docs(app)
    page.add_page(app, app.state.services)


def _add_request_checks(app: FastAPI, settings: Settings) -> None:
    """The last one added sees a request first."""
    app.add_middleware(QueryCheck, contract=app.state.contract)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=CORS_EXPOSED_HEADERS,
        )
    app.add_middleware(OriginCheck, settings=settings)
    app.add_middleware(HeadRequests)
    app.add_middleware(SecurityHeaders, settings=settings)


def create_operations_app(public: FastAPI) -> FastAPI:
    """Health and metrics of the public application, for a separate port that clients cannot reach."""
    app = FastAPI(title="ivmix operations", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.services = public.state.services
    app.state.metrics = public.state.metrics
    app.state.contract = Contract(app)
    app.include_router(health.router)
    app.include_router(metrics.router)
    add_error_handlers(app)
    _add_request_checks(app, public.state.services.settings)
    app.add_middleware(RequestId)
    app.add_middleware(RequestPath, prefix="")
    return app
