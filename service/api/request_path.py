"""ASGI middleware that makes different spellings of a request one: path prefix, trailing slash, HEAD."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class RequestPath:
    """Sets the prefix of IVMIX_ROOT_PATH, whether or not the proxy has removed it, and drops one trailing slash.

    A redirect would lead to the wrong scheme or host behind a proxy, and many clients do not repeat a POST.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app, self._prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            prefix, path = self._prefix, scope["path"]
            if prefix and path != prefix and not path.startswith(f"{prefix}/"):
                path = prefix + path
            route = path.removeprefix(prefix)
            if not route:
                path = f"{prefix}/"
            if len(route) > 1 and route.endswith("/") and not route.endswith("//"):
                path = path[:-1]
            scope = {**scope, "root_path": prefix, "path": path}
        await self._app(scope, receive, send)


class HeadRequests:
    """Answers HEAD wherever GET is supported: runs the GET and sends the head of its response.

    The application ends after that, so that a HEAD of an event stream does not hold it open.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)
        is_answered = False

        async def receive_until_answered() -> Message:
            return {"type": "http.disconnect"} if is_answered else await receive()

        async def send_head(message: Message) -> None:
            nonlocal is_answered
            if is_answered:
                return
            await send(message)
            if message["type"] == "http.response.start":
                is_answered = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        state = {**scope.get("state", {}), "is_head": True}
        await self._app({**scope, "method": "GET", "state": state}, receive_until_answered, send_head)


def route_path(scope: Scope) -> str:
    """The path behind the prefix that `RequestPath` has set: that of routes and of the OpenAPI document."""
    return scope["path"].removeprefix(scope.get("root_path", ""))


def is_head(scope: Scope) -> bool:
    """Whether the client sent HEAD; the application sees GET."""
    return "is_head" in scope.get("state", {})
