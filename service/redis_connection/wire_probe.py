"""Finds out what a server speaks: Redis' protocol, TLS, or something else."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from enum import Enum, auto

ALERT_S = 0.3  # in which the alert of a TLS 1.3 server arrives after the handshake

# As an array and not as a line: an HTTP server answers both, and a TLS server neither.
PING = b"*1\r\n$4\r\nPING\r\n"


class Speech(Enum):
    REDIS = auto()
    TLS = auto()
    OTHER = auto()
    SILENT = auto()  # nothing answers
    ASKS_FOR_CERTIFICATE = auto()  # of the client, in the TLS handshake


def listen(host: str, port: int, timeout_s: float) -> Speech:
    reply = _reply_to_ping(host, port, timeout_s)
    if reply[:1] in (b"+", b"-"):
        return Speech.REDIS
    if reply[:2] in (b"\x15\x03", b"") and _speaks_tls(host, port, timeout_s):
        return Speech.TLS
    return Speech.OTHER if reply else Speech.SILENT


def _reply_to_ping(host: str, port: int, timeout_s: float) -> bytes:
    try:
        with socket.create_connection((host, port), timeout_s) as s:
            s.settimeout(timeout_s)
            s.sendall(PING)
            return s.recv(64)
    except OSError:
        return b""


def listen_through_tls(host: str, port: int, timeout_s: float) -> Speech:
    """What a TLS server speaks inside."""
    try:
        with socket.create_connection((host, port), timeout_s) as s:
            s.settimeout(timeout_s)
            with _trusting().wrap_socket(s, server_hostname=host) as secure:
                reply = _reply_of_secure(secure, timeout_s)
    except ssl.SSLError as e:
        return Speech.ASKS_FOR_CERTIFICATE if "CERTIFICATE_REQUIRED" in str(e) else Speech.SILENT
    except OSError:
        return Speech.SILENT
    if not reply:
        return Speech.SILENT
    return Speech.REDIS if reply[:1] in (b"+", b"-") else Speech.OTHER


def _reply_of_secure(secure: ssl.SSLSocket, timeout_s: float) -> bytes:
    """What the server says first, such as an alert, which a write could discard; otherwise its reply to PING."""
    secure.settimeout(ALERT_S)
    with suppress(TimeoutError):
        return secure.recv(64)
    secure.settimeout(timeout_s)
    secure.sendall(PING)
    return secure.recv(64)


def _speaks_tls(host: str, port: int, timeout_s: float) -> bool:
    try:
        with socket.create_connection((host, port), timeout_s) as s:
            s.settimeout(timeout_s)
            with _trusting().wrap_socket(s, server_hostname=host):
                return True
    except ssl.SSLError as e:
        return "ALERT" in str(e)  # an alert of the peer, such as a required client certificate
    except OSError:
        return False


def _trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing secret is sent
    return context
