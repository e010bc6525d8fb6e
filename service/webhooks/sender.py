"""One POST to one receiver, which may be hostile: to a checked address only, within one deadline and a size limit.

It is built on httpcore2, the transport of httpx2, because that lets us make the connection: the host name is resolved
once and the checked address is connected to, while TLS and the Host header still get the name (no DNS rebinding).
Redirects and the environment's proxies are ignored; of the reply, only the status and Retry-After are used.
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

from service.webhooks.url_policy import NameNotResolved, UrlNotAllowed, UrlPolicy, port_of

log = logging.getLogger("ivmix.webhooks")

USER_AGENT = "ivmix-webhooks/1"
MAX_REPLY_BYTES = 64 * 1024  # head and body together
MAX_ADDRESSES = 4  # of one host that are tried

# The most specific class in an error's MRO that is listed here names the error in the delivery log.
ERROR_NAMES: dict[type[Exception], str] = {
    UrlNotAllowed: "refused_url",
    NameNotResolved: "name_not_resolved",
    httpcore2.TimeoutException: "timeout",
    httpcore2.ConnectError: "no_connection",
    httpcore2.NetworkError: "connection_lost",
    httpcore2.ProtocolError: "not_http",
    ssl.SSLError: "tls_failed",
}


@dataclass(frozen=True)
class Outcome:
    """The result of one POST: a status code, the name of an error, or both."""

    status_code: int | None
    error: str | None
    duration_s: float
    retry_after_s: float | None = None

    @property
    def is_delivered(self) -> bool:
        return self.error is None and self.status_code is not None and 200 <= self.status_code < 300


class Sender:
    """`timeout_s` covers a whole exchange: name resolution, connection, TLS, request and reply."""

    def __init__(
        self, url_policy: UrlPolicy, *, timeout_s: float = 15.0, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._url_policy = url_policy
        self._timeout_s = timeout_s
        self._given_context = ssl_context

    @cached_property
    def _ssl_context(self) -> ssl.SSLContext:
        return self._given_context or httpx2.create_ssl_context()  # honours SSL_CERT_FILE, for internal CAs

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Outcome:
        """POST `body` with these headers in addition to the standard ones; never raises."""
        started = time.monotonic()
        try:
            status, reply = self._exchange(url, body, headers, deadline=started + self._timeout_s)
        except _ReplyTooLarge as e:
            return Outcome(e.status_code, "reply_too_large", _elapsed_s(started))
        except tuple(ERROR_NAMES) as e:
            return Outcome(None, _error_name(e), _elapsed_s(started))
        except Exception:  # a bug here must count as an attempt, or the delivery would be retried forever
            log.exception("sending a webhook failed with an internal error")
            return Outcome(None, "internal_error", _elapsed_s(started))
        error = None if 200 <= status < 300 else "redirect" if 300 <= status < 400 else "bad_status"
        return Outcome(status, error, _elapsed_s(started), _retry_after_s(reply))

    def _exchange(
        self, url: str, body: bytes, headers: Mapping[str, str], *, deadline: float
    ) -> tuple[int, dict[str, str]]:
        target = self._url_policy.parse(url)
        addresses = self._url_policy.resolve(target.host, port_of(target), timeout_s=deadline - time.monotonic())
        # A new pool for every exchange, so that no connection outlives the address check.
        backend = _CheckedBackend(addresses[:MAX_ADDRESSES], deadline)
        all_headers = {
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
                headers=list(all_headers.items()),
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
    """Connects to the addresses it was given; never resolves a name."""

    def __init__(self, addresses: list[str], deadline: float) -> None:
        self._addresses = addresses
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,  # noqa: ARG002  # already resolved and checked
        port: int,
        timeout: float | None = None,  # noqa: ARG002  # the deadline covers the whole exchange
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        last_error: Exception = httpcore2.ConnectError("no address")
        for i, address in enumerate(self._addresses):
            connect_timeout = _remaining_s(self._deadline) / (len(self._addresses) - i)
            try:
                stream = super().connect_tcp(address, port, connect_timeout, local_address, socket_options)
                return _BoundedStream(stream, self._deadline)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as e:
                last_error = e
        raise last_error


class _BoundedStream(httpcore2.NetworkStream):
    """Applies deadline and size limit to the exchange as a whole: a receiver cannot extend it byte by byte."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline
        self._read_bytes = 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        data = self._stream.read(max_bytes, _remaining_s(self._deadline))
        self._read_bytes += len(data)
        if self._read_bytes > MAX_REPLY_BYTES:
            raise _ReplyTooLarge
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._stream.write(buffer, _remaining_s(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore2.NetworkStream:
        inner = self._stream.start_tls(ssl_context, server_hostname, _remaining_s(self._deadline))
        return _BoundedStream(inner, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _remaining_s(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise httpcore2.ReadTimeout("deadline of the exchange exceeded")
    return remaining


def _elapsed_s(started: float) -> float:
    return round(time.monotonic() - started, 3)


def _error_name(error: Exception) -> str:
    """httpcore2 wraps a failed TLS handshake in a ConnectError, so the causes are searched first."""
    for e in (error.__cause__, error.__context__, error):
        if isinstance(e, ssl.SSLError):
            return ERROR_NAMES[ssl.SSLError]
    return next(ERROR_NAMES[kind] for kind in type(error).__mro__ if kind in ERROR_NAMES)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Retry-After in seconds from now, given as seconds or as a date (RFC 9110 10.2.3); None if missing or invalid."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 9:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
