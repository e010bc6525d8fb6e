"""Response headers for browsers: what pages of this server may do, and what may be kept in a cache."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.request_path import route_path
from service.settings import Settings

_API_POLICY = b"default-src 'none'; frame-ancestors 'none'"
# The browser's own player, when a video is opened in a tab.
_MEDIA_POLICY = (
    b"default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; media-src 'self'; frame-ancestors 'none'"
)
# Swagger UI has an inline script and inline styles, and shows images from data URLs.
_PAGE_POLICY = (
    b"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    b"connect-src 'self'; media-src 'self' blob:; font-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'"
)


class SecurityHeaders:
    """A response that sets one of these headers itself keeps it."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        # With configured origins, their pages may also show videos without CORS.
        resource_policy = b"cross-origin" if settings.cors_origins else b"same-origin"
        self._headers = {
            b"x-content-type-options": b"nosniff",
            b"referrer-policy": b"no-referrer",
            b"x-frame-options": b"DENY",  # for browsers without frame-ancestors
            b"cross-origin-resource-policy": resource_policy,
            b"cache-control": b"no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = dict(message["headers"])
                added = self._headers | {b"content-security-policy": _policy(given.get(b"content-type", b""))}
                if route_path(scope).startswith("/docs"):  # the page and its assets are the same for everybody
                    del added[b"cache-control"]
                message["headers"] = [*message["headers"], *(pair for pair in added.items() if pair[0] not in given)]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _policy(content_type: bytes) -> bytes:
    if content_type.startswith(b"text/html"):
        return _PAGE_POLICY
    return _MEDIA_POLICY if content_type.startswith((b"video/", b"image/")) else _API_POLICY
