"""ASGI middleware: request ids and request metrics."""

from __future__ import annotations

import random
import re
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.metrics import Metrics
from service.api.request_path import route_path
from service.log_config import log_context_of_task

# Clients can send any word as method; only these become a label.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestId:
    """Echoes the client's x-request-id if it is short and plain, else generates one; binds it to the log context."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if re.fullmatch(r"[\w.-]{1,128}", sent, re.ASCII) else f"req_{random.getrandbits(128):032x}"
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        video = re.match(r"/v1/videos/(video_[0-9a-f]{32})(?![^/])", route_path(scope))
        log_context_of_task(request_id=request_id, **({"video_id": video[1]} if video else {}))  # each request has one
        await self._app(scope, receive, send_with_id)


class RequestMetrics:
    """Counts and times requests, labelled by route template so that ids do not become labels."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began = time.perf_counter()

        async def send_and_record(message: Message) -> None:
            if message["type"] == "http.response.start":
                method, route = _labels(scope)
                self._metrics.record(method, route, message["status"], time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, send_and_record)


def _labels(scope: Scope) -> tuple[str, str]:
    """Method and route. What matches no route, or has no method of HTTP's, is one label each."""
    if scope["method"] not in METHODS:
        return "other", "none"
    route = getattr(scope.get("route"), "path", "none")
    return "any" if route == "none" else scope["method"], route
