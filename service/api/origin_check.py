"""Refuses requests that another web page makes: a foreign Host (DNS rebinding) or a foreign Origin.

Without authentication the browser on this machine is the only guard of the API, and any page it shows can send
requests here. Clients that are not browsers send neither Origin nor Sec-Fetch-Site and are not affected.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.errors import error_response
from service.settings import PREFIX, Settings

# RFC 9110 host and port. Everything else, such as userinfo, two colons or spaces, is refused.
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>\d{1,5}))?")
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Authority:
    """Host and port of a URL or a Host header, in one spelling."""

    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Authority | None:
        match = _AUTHORITY.fullmatch(text)
        if match is None:
            return None
        host = match["host"].strip("[]").lower().removesuffix(".")
        return cls(host, int(match["port"]) if match["port"] else None)

    @property
    def address(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return None
        return getattr(address, "ipv4_mapped", None) or address


class OriginCheck:
    """ASGI middleware. With authentication only the Host is checked, and only if IVMIX_ALLOWED_HOSTS is set."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._checks_origin = settings.auth == "off"
        self._checks_host = self._checks_origin or bool(settings.allowed_hosts)
        urls = filter(None, [settings.public_base_url, *settings.cors_origins])
        self._origins = {origin for url in urls if (origin := _origin(url))}
        public = urlsplit(settings.public_base_url or "").hostname
        names = ("localhost", settings.host, public, *settings.allowed_hosts)
        self._hosts = {name.strip("[]").lower().removesuffix(".") for name in names if name}
        self._domains = tuple(name for name in self._hosts if name.startswith("."))
        # A page cannot point a host name of its own at an IP address in the Host header.
        self._allows_addresses = not settings.is_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if self._checks_host and (problem := self._host_problem(headers)):
                return await error_response(421, problem, code="host_not_allowed")(scope, receive, send)
            if self._checks_origin and (problem := self._origin_problem(scope, headers)):
                return await error_response(403, problem, code="origin_not_allowed")(scope, receive, send)
        await self._app(scope, receive, send)

    def _host_problem(self, headers: Headers) -> str | None:
        sent = headers.getlist("host")
        if not sent:  # HTTP/1.0; every browser sends it
            return None
        authority = Authority.parse(sent[0]) if len(sent) == 1 else None
        if authority is not None and self._is_our_host(authority):
            return None
        shown = ", ".join(sent)[:80]
        return (
            f"The Host '{shown}' is not one of this server. If clients reach it under that name, add the name to "
            f"{PREFIX}ALLOWED_HOSTS."
        )

    def _is_our_host(self, authority: Authority) -> bool:
        address = authority.address
        if address is not None and (address.is_loopback or self._allows_addresses):
            return True
        return authority.host in self._hosts or authority.host.endswith(self._domains)

    def _origin_problem(self, scope: Scope, headers: Headers) -> str | None:
        origins = headers.getlist("origin")
        if len(origins) > 1 or (origins and not self._is_our_origin(origins[0], headers)):
            shown = ", ".join(origins)[:80]
            return f"Pages of the origin '{shown}' may not call this server; {_way_out()}"
        if origins or headers.get("sec-fetch-site", "none") in ("none", "same-origin") or _is_visit(scope, headers):
            return None
        # <img> and <video> send no Origin, but the browser names the page that contains them.
        if _origin(headers.get("referer", "")) in self._origins:
            return None
        return f"Pages of other sites may not load this URL; {_way_out()}"

    def _is_our_origin(self, origin: str, headers: Headers) -> bool:
        return _is_addressed(origin, headers) or _origin(origin, exact=True) in self._origins


def is_from_own_page(headers: Headers) -> bool:
    """Whether a browser says that a page of this very origin sent the request."""
    if site := headers.get("sec-fetch-site"):
        return site == "same-origin"
    return _is_addressed(headers.get("origin", ""), headers)


def _is_addressed(origin: str, headers: Headers) -> bool:
    """Whether the request was sent to this very origin."""
    sent = _origin(origin, exact=True)
    return sent is not None and sent == _origin(f"{sent[0]}://{headers.get('host', '')}", exact=True)


def _is_visit(scope: Scope, headers: Headers) -> bool:
    """Whether the user followed a link: the other page cannot read what the browser then shows."""
    mode, target = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
    return scope["method"] in ("GET", "HEAD") and mode == "navigate" and target == "document"


def _origin(url: str, *, exact: bool = False) -> tuple[str, Authority] | None:
    """Scheme and authority of a URL, the latter with its port; `exact` refuses a URL with more than an origin."""
    scheme, separator, rest = url.partition("://")
    text, slash, _ = rest.partition("/")
    authority = Authority.parse(text)
    scheme = scheme.lower()
    if not separator or authority is None or scheme not in _DEFAULT_PORTS or (exact and slash):
        return None
    return scheme, Authority(authority.host, authority.port or _DEFAULT_PORTS[scheme])


def _way_out() -> str:
    return f"set {PREFIX}CORS_ORIGINS to allow them, or {PREFIX}AUTH=keys."
