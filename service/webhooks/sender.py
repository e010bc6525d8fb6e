"""One POST to one receiver, which may be hostile: to a checked address only, within one deadline, reading little.

Works on httpcore2, the engine of httpx2, because there the connection is ours to make: the name is looked up once and
the checked address is the one connected to, while TLS and the Host header still get the name. Redirects are not
followed, proxies of the environment are not used, and what the receiver says beyond its status is thrown away.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any

import httpcore2
import httpx2

from service.webhooks.url_policy import Refused, Unresolved, UrlPolicy, port_of

log = logging.getLogger("ivmix.webhooks")

USER_AGENT = "ivmix-webhooks/1"
MAX_REPLY_BYTES = 64 * 1024  # head and body together
MAX_ADDRESSES = 4  # of one name that are tried

# The most special class of an error that is in here names it in the delivery log.
FAILURES: dict[type[Exception], str] = {
    Refused: "refused_url",
    Unresolved: "name_not_resolved",
    httpcore2.TimeoutException: "timeout",
    httpcore2.ConnectError: "no_connection",
    httpcore2.NetworkError: "connection_lost",
    httpcore2.ProtocolError: "not_http",
    ssl.SSLError: "tls_failed",
}


@dataclass(frozen=True)
class Outcome:
    """What came of one POST: a status, or the name of what went wrong, or both."""

    status_code: int | None
    error: str | None
    duration_s: float
    retry_after_s: float | None = None

    @property
    def is_delivered(self) -> bool:
        return self.error is None and self.status_code is not None and 200 <= self.status_code < 300


class Sender:
    def __init__(
        self, receivers: UrlPolicy, *, timeout_s: float = 15.0, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._receivers = receivers
        self._timeout_s = timeout_s
        self._given_context = ssl_context

    @cached_property
    def _ssl_context(self) -> ssl.SSLContext:
        return self._given_context or httpx2.create_ssl_context()  # knows SSL_CERT_FILE, for internal authorities

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Outcome:
        """Never raises."""
        began = time.monotonic()
        try:
            status, reply = self._exchange(url, body, headers, deadline=began + self._timeout_s)
        except _ReplyTooLarge as e:
            return Outcome(e.status_code, "reply_too_large", _since(began))
        except tuple(FAILURES) as e:
            return Outcome(None, _name_of(e), _since(began))
        except Exception:  # a mistake of ours counts as an attempt too: it must not be repeated for ever
            log.exception("sending a webhook failed")
            return Outcome(None, "internal_error", _since(began))
        error = None if 200 <= status < 300 else "redirect" if 300 <= status < 400 else "bad_status"
        return Outcome(status, error, _since(began), _retry_after_s(reply))

    def _exchange(
        self, url: str, body: bytes, headers: Mapping[str, str], *, deadline: float
    ) -> tuple[int, dict[str, str]]:
        target = self._receivers.parse(url)
        addresses = self._receivers.locate(target.host, port_of(target), timeout_s=deadline - time.monotonic())
        # A pool of its own for every exchange: nothing is kept between two receivers, or two look-ups.
        backend = _CheckedBackend(addresses[:MAX_ADDRESSES], deadline)
        sent = {
            "host": target.netloc.decode("ascii"),
            "user-agent": USER_AGENT,
            "accept": "*/*",
            "connection": "close",
            "content-type": "application/json",
            "content-length": str(len(body)),
            **headers,
        }
        with (
            httpcore2.ConnectionPool(ssl_context=self._ssl_context, network_backend=backend) as pool,
            pool.stream(
                "POST",
                httpcore2.URL(scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path),
                headers=list(sent.items()),
                content=body,
            ) as response,
        ):
            try:
                for _ in response.iter_stream():
                    pass
            except _ReplyTooLarge as e:
                raise _ReplyTooLarge(response.status) from e
            return response.status, {
                name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers
            }


class _ReplyTooLarge(Exception):
    def __init__(self, status_code: int | None = None) -> None:
        super().__init__(f"more than {MAX_REPLY_BYTES} bytes")
        self.status_code = status_code


class _CheckedBackend(httpcore2.SyncBackend):
    """Connects to the addresses it was given, whatever the name means by now."""

    def __init__(self, addresses: list[str], deadline: float) -> None:
        self._addresses = addresses
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,  # noqa: ARG002  # looked up and checked before
        port: int,
        timeout: float | None = None,  # noqa: ARG002  # ours is for the whole exchange
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        last: Exception = httpcore2.ConnectError("no address")
        for i, address in enumerate(self._addresses):
            share = _left(self._deadline) / (len(self._addresses) - i)
            try:
                stream = super().connect_tcp(address, port, share, local_address, socket_options)
                return _BoundedStream(stream, self._deadline)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as e:
                last = e
        raise last


class _BoundedStream(httpcore2.NetworkStream):
    """The deadline and the size hold for everything together: a byte now and then does not start the clock again."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline
        self._read_bytes = 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        data = self._stream.read(max_bytes, _left(self._deadline))
        self._read_bytes += len(data)
        if self._read_bytes > MAX_REPLY_BYTES:
            raise _ReplyTooLarge
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore2.NetworkStream:
        inner = self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline))
        return _BoundedStream(inner, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore2.ReadTimeout("the time for this exchange is over")
    return left


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)


def _name_of(error: Exception) -> str:
    """A failed handshake comes wrapped as a failed connection."""
    for e in (error.__cause__, error.__context__, error):
        if isinstance(e, ssl.SSLError):
            return FAILURES[ssl.SSLError]
    return next(FAILURES[kind] for kind in type(error).__mro__ if kind in FAILURES)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds or a date (RFC 9110 10.2.3); what is neither counts as not said."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 9:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
