"""Which URLs webhooks may be sent to, and at which addresses. Resolves host names; opens no connection.

A URL is checked twice by the same rules: when a client registers it, and before every request, because a name's
addresses change. Every address of a name must be allowed, and the sender connects to one that was checked.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from ipaddress import ip_network

import httpx2

from service.errors import InvalidParameter
from service.webhooks.private_addresses import Network, refusal_reason

MAX_URL = 2048
CHECK_TIMEOUT_S = 3.0  # a name that takes longer is accepted now and resolved again before every request
MAX_CONCURRENT_CHECKS = 8  # slow names must not occupy every thread of an API process, nor start ever more
WEB_PORTS = (80, 443)  # no others below 1024: mail servers and the like may act on a POST

Resolver = Callable[[str, int], Sequence[str]]


class UrlNotAllowed(Exception):
    """The message says why, without the URL's path."""


class NameNotResolved(Exception):
    """The resolver gave no answer, which may change."""


class UrlPolicy:
    """Which URLs are allowed.

    Args:
        allow: networks (10.0.0.0/8), hosts and .domains that are allowed although they are not public.
        allow_http: allow http:// as well as https://.
        resolver: returns all addresses of a host; the system's resolver if None.
    """

    def __init__(
        self, allow: Sequence[str] = (), *, allow_http: bool = False, resolver: Resolver | None = None
    ) -> None:
        self._networks: list[Network] = []
        self._hosts: list[str] = []
        for entry in allow:
            try:
                self._networks.append(ip_network(entry))
            except ValueError:
                self._hosts.append(entry.lower())
        self._schemes = ("https", "http") if allow_http else ("https",)
        self._resolver = resolver or system_resolver
        self._checks = threading.BoundedSemaphore(MAX_CONCURRENT_CHECKS)

    def check(self, url: str, param: str) -> None:
        """Check a URL that a client registers.

        A name that cannot be resolved at the moment passes: it is resolved again before every request.

        Raises:
            InvalidParameter: for `param`, if nothing would be sent to this URL.
        """
        try:
            target = self.parse(url)
            if self._checks.acquire(blocking=False):  # otherwise accepted without resolving it now
                self._check_addresses(
                    target.host, _call_within(CHECK_TIMEOUT_S, lambda: self._resolve_and_release(target))
                )
        except UrlNotAllowed as e:
            raise InvalidParameter(param, f"'{param}' cannot receive webhooks: {e}.") from e
        except NameNotResolved:
            pass

    def parse(self, url: str) -> httpx2.URL:
        """Raises UrlNotAllowed. The sender uses the returned URL, because two parsers could read two hosts."""
        if len(url) > MAX_URL or not re.fullmatch(r"[!-~]+", url) or "\\" in url:
            raise UrlNotAllowed(
                f"it must be at most {MAX_URL} printable ASCII characters without spaces and backslashes"
            )
        try:
            target = httpx2.URL(url)
        except httpx2.InvalidURL as e:
            raise UrlNotAllowed("it is not a URL") from e
        if target.scheme not in self._schemes:
            raise UrlNotAllowed(f"it must begin with {' or '.join(f'{scheme}://' for scheme in self._schemes)}")
        if not target.host:
            raise UrlNotAllowed("it has no host")
        if "@" in re.split(r"[/?#]", url.partition("//")[2])[0]:
            raise UrlNotAllowed("it must not contain a user name or password")
        if target.fragment:
            raise UrlNotAllowed("it must not have a #fragment")
        port = port_of(target)
        is_reserved = port < 1024 and port not in WEB_PORTS
        if port > 65_535 or (is_reserved and not self._is_allowed_host(target.host)):
            raise UrlNotAllowed(f"port {port} is not allowed; use 80, 443 or one from 1024 to 65535")
        return target

    def resolve(self, host: str, port: int, *, timeout_s: float) -> list[str]:
        """All addresses of the host. Raises UrlNotAllowed if one of them is not allowed, or NameNotResolved."""
        return self._check_addresses(host, _call_within(timeout_s, lambda: self._resolver(host, port)))

    def _resolve_and_release(self, target: httpx2.URL) -> Sequence[str]:
        """Counts until the resolver is done, also if its result is no longer awaited: that bounds the threads."""
        try:
            return self._resolver(target.host, port_of(target))
        finally:
            self._checks.release()

    def _check_addresses(self, host: str, found: Sequence[str]) -> list[str]:
        """The addresses without duplicates. Raises UrlNotAllowed if one of them is not allowed."""
        addresses = list(dict.fromkeys(found))
        if not addresses:
            raise UrlNotAllowed(f"{host[:100]} has no address")
        is_allowed_host = self._is_allowed_host(host)
        for address in addresses:
            if reason := refusal_reason(address, self._networks, is_allowed_host=is_allowed_host):
                # Without the address: clients must not learn what internal names resolve to.
                raise UrlNotAllowed(f"{host[:100]} is, or resolves to, {reason}")
        return addresses

    def _is_allowed_host(self, host: str) -> bool:
        name = host.lower().removesuffix(".")
        return any(name == entry or (entry.startswith(".") and name.endswith(entry)) for entry in self._hosts)


def port_of(url: httpx2.URL) -> int:
    return url.port if url.port is not None else {"http": 80, "https": 443}[url.scheme]


def host_of(url: str) -> str:
    """Host and port of a URL that was accepted, in one form for all spellings; "" if it is not a URL."""
    try:
        target = httpx2.URL(url)
        return f"{target.host.lower().removesuffix('.')}:{port_of(target)}"
    except (httpx2.InvalidURL, KeyError):
        return ""


def system_resolver(host: str, port: int) -> list[str]:
    """Raises UrlNotAllowed for a name that does not exist, NameNotResolved if the resolver fails."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as e:
        raise UrlNotAllowed(f"{host[:100]} is not a host name") from e
    except socket.gaierror as e:
        if e.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            raise UrlNotAllowed(f"host {host[:100]} does not exist") from e
        raise NameNotResolved(f"{host[:100]} could not be resolved") from e
    return [str(address[0]) for *_, address in found]


def _call_within(timeout_s: float, resolve: Callable[[], Sequence[str]]) -> Sequence[str]:
    """getaddrinfo has no timeout, so it runs in a thread that is abandoned after `timeout_s`."""
    addresses: Future[Sequence[str]] = Future()

    def run() -> None:
        try:
            addresses.set_result(resolve())
        except Exception as e:  # re-raised by the caller
            addresses.set_exception(e)

    threading.Thread(target=run, name="resolver", daemon=True).start()
    try:
        return addresses.result(max(timeout_s, 0.0))
    except TimeoutError as e:
        raise NameNotResolved(f"no answer from the resolver within {timeout_s:.1f} s") from e
