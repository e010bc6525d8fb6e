"""Response headers for browsers: what pages of this server may do, and what may be kept in a cache."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.request_path import route_path
from service.settings import Settings

_API_POLICY = "default-src 'none'; frame-ancestors 'none'"
# The browser's own player, when a video is opened in a tab.
_MEDIA_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; media-src 'self'; frame-ancestors 'none'"
)
# Swagger UI has an inline script and inline styles, and shows images from data URLs.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; media-src 'self' blob:; font-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


class SecurityHeaders:
    """A response that sets one of these headers itself keeps it."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        # With configured origins, their pages may also show videos without CORS.
        self._resource_policy = "cross-origin" if settings.cors_origins else "same-origin"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("x-content-type-options", "nosniff")
                headers.setdefault("referrer-policy", "no-referrer")
                headers.setdefault("content-security-policy", _policy(headers.get("content-type", "")))
                headers.setdefault("x-frame-options", "DENY")  # for browsers without frame-ancestors
                headers.setdefault("cross-origin-resource-policy", self._resource_policy)
                if not route_path(scope).startswith("/docs"):  # the page and its assets are the same for everybody
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _policy(content_type: str) -> str:
    if content_type.startswith("text/html"):
        return _PAGE_POLICY
    return _MEDIA_POLICY if content_type.startswith(("video/", "image/")) else _API_POLICY
