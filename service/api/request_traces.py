"""ASGI middleware: a span for each request that changes videos. Polls and downloads have none: there are too many."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.request_path import route_path
from service.tracing import Tracing


class RequestTraces:
    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app, self._tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not route_path(scope).startswith("/v1/videos"):
            return await self._app(scope, receive, send)
        parent, attributes = Headers(scope=scope).get("traceparent"), {"http.request.method": scope["method"]}
        with self._tracing.span("POST /v1/videos", parent=parent, kind="server", attributes=attributes) as span:

            async def send_and_note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    route = getattr(scope.get("route"), "path", "none")
                    span.set({"http.route": route, "http.response.status_code": message["status"]})
                    if message["status"] >= 500:
                        span.fail(str(message["status"]))
                await send(message)

            await self._app(scope, receive, send_and_note)
