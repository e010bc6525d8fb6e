"""Put the application together around the services it is given. Opens nothing, keeps nothing global."""

from __future__ import annotations

import re
import secrets
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import health, problems, routes
from service.api.contract import contract
from service.logs import about
from service.wiring import Services


def create_app(services: Services) -> FastAPI:
    """Raises ConfigurationError if the settings would let strangers in."""
    services.settings.refuse_open_host()
    app = FastAPI(
        title="ivmix",
        version="1",
        summary="Text to video with the IV-Mixed Sampler, in the wire format of OpenAI's Videos API.",
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.services = services
    app.include_router(routes.router)
    app.include_router(health.router)
    problems.install(app)
    app.add_middleware(RequestId)
    app.openapi = lambda: contract(app)
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
        with about(request_id=request_id, **({"video_id": named[1]} if named else {})):
            await self._app(scope, receive, send_with_id)
