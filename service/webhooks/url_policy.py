"""Which URLs may be told, and at which addresses they lie. Asks the resolver; connects to nothing.

A URL is looked at twice with the same rules: when a client names it, and when something is sent there, because names
change their addresses. Every address of a name must be allowed, and the caller connects to one that was checked.
"""

from __future__ import annotations

import queue
import re
import socket
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import httpx2

from service.errors import InvalidParameter
from service.webhooks.addresses import Network, networks, why_not

MAX_URL = 2048
LOOK_UP_S = 3.0  # when a client names a URL; names that take longer are looked up again when something is sent
LOOK_UPS = 8  # for clients at one time: slow names must not take all threads of an API process
WELL_KNOWN_PORTS = (80, 443)  # below 1024 no others: mail servers and the like can be made to act on a POST

Resolver = Callable[[str, int], Sequence[str]]


class Refused(Exception):
    """Nothing is ever sent to this URL as things are; the message says why, without the URL's path."""


class Unresolved(Exception):
    """The resolver has no answer just now."""


class UrlPolicy:
    """`allow`: networks, hosts and .domains that may be reached though they are not public."""

    def __init__(self, allow: Sequence[str] = (), *, allow_http: bool = False, resolve: Resolver | None = None) -> None:
        self._networks: tuple[Network, ...] = networks(entry for entry in allow if _is_network(entry))
        self._hosts = tuple(entry.lower() for entry in allow if not _is_network(entry))
        self._schemes = ("https", "http") if allow_http else ("https",)
        self._resolve = resolve or system_resolver
        self._look_ups = threading.BoundedSemaphore(LOOK_UPS)

    def check(self, url: str, param: str) -> None:
        """Raises InvalidParameter for a URL that nothing would be sent to."""
        try:
            target = self.parse(url)
            with self._place():
                self.locate(target.host, port_of(target), timeout_s=LOOK_UP_S)
        except Refused as e:
            raise InvalidParameter(param, f"'{param}' cannot be a receiver of webhooks: {e}.") from e
        except Unresolved:
            pass  # our resolver's fault, perhaps; it is asked again when something is sent

    @contextmanager
    def _place(self) -> Generator[None]:
        """Raises Unresolved at once if LOOK_UPS are under way."""
        if not self._look_ups.acquire(blocking=False):
            raise Unresolved("the resolver is busy")
        try:
            yield
        finally:
            self._look_ups.release()

    def parse(self, url: str) -> httpx2.URL:
        """Raises Refused. The sender goes by the same result: two parsers could read two hosts."""
        if len(url) > MAX_URL or not re.fullmatch(r"[!-~]+", url) or "\\" in url:
            raise Refused(f"it must be at most {MAX_URL} printable ASCII characters without spaces and backslashes")
        try:
            target = httpx2.URL(url)
        except httpx2.InvalidURL as e:
            raise Refused("it is not a URL") from e
        if target.scheme not in self._schemes:
            raise Refused(f"it must begin with {' or '.join(f'{scheme}://' for scheme in self._schemes)}")
        if not target.host:
            raise Refused("it has no host")
        if "@" in re.split(r"[/?#]", url.partition("//")[2])[0]:
            raise Refused("it must not hold a user or a password")
        if target.fragment:
            raise Refused("it must not have a #fragment")
        port = port_of(target)
        low = port < 1024 and port not in WELL_KNOWN_PORTS
        if port > 65_535 or (low and not self._is_trusted(target.host)):
            raise Refused(f"port {port} is not a web server's")
        return target

    def locate(self, host: str, port: int, *, timeout_s: float) -> list[str]:
        """Every address of the host, all of them allowed. Raises Refused or Unresolved."""
        addresses = list(dict.fromkeys(_within(timeout_s, lambda: self._resolve(host, port))))
        if not addresses:
            raise Refused(f"{host[:100]} has no address")
        trusted = self._is_trusted(host)
        for address in addresses:
            if reason := why_not(address, self._networks, trusted=trusted):
                # not the address: what internal names stand for is nothing to tell a client
                raise Refused(f"{host[:100]} is {reason}, or leads to one")
        return addresses

    def _is_trusted(self, host: str) -> bool:
        name = host.lower().removesuffix(".")
        return any(name == entry or (entry.startswith(".") and name.endswith(entry)) for entry in self._hosts)


def port_of(url: httpx2.URL) -> int:
    return url.port if url.port is not None else {"http": 80, "https": 443}[url.scheme]


def system_resolver(host: str, port: int) -> list[str]:
    """Raises Refused for a name that does not exist, Unresolved when nobody can say."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as e:
        raise Refused(f"{host[:100]} is not a host name") from e
    except socket.gaierror as e:
        if e.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            raise Refused(f"there is no host {host[:100]}") from e
        raise Unresolved(f"{host[:100]} could not be looked up") from e
    return [str(address[0]) for *_, address in found]


def _within(timeout_s: float, look_up: Callable[[], Sequence[str]]) -> Sequence[str]:
    """getaddrinfo cannot be told to hurry, so it is left behind in a thread that ends when it will."""
    answers: queue.SimpleQueue[Sequence[str] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(look_up())
        except Exception as e:  # the asker's to deal with
            answers.put(e)

    threading.Thread(target=ask, name="look-up", daemon=True).start()
    try:
        answer = answers.get(timeout=max(timeout_s, 0.0))
    except queue.Empty as e:
        raise Unresolved(f"no answer from the resolver within {timeout_s:.1f} s") from e
    if isinstance(answer, Exception):
        raise answer
    return answer


def _is_network(text: str) -> bool:
    try:
        networks((text,))
    except ValueError:
        return False
    return True
