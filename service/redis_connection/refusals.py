"""Recognises errors that do not get better by waiting, and says what must be changed."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

from redis import exceptions as errors

from service.redis_connection.client import split_url
from service.redis_connection.sentinel_url import is_sentinel
from service.redis_connection.url_options import TLS_OPTIONS
from service.redis_connection.wire_probe import Speech, listen, listen_through_tls

TIMEOUT_S = 2.0
OLDEST = (6, 2)
_CLIENT_FILES = f"{TLS_OPTIONS['ssl_certfile']} and {TLS_OPTIONS['ssl_keyfile']}"
_CERTIFICATE_REQUIRED = f"requires a client certificate; set {_CLIENT_FILES}, signed by a CA that the server trusts"
NO_REDIS = "is not a Redis server; correct host and port"


def refusal_reason(e: Exception, url: str) -> str | None:
    """What must be changed so that the server accepts us; None if waiting may help."""
    for cause in chain(e):
        if problem := _refused_by_tls(cause, url) or _refused_by_server(cause):
            return problem
    if isinstance(e, errors.BusyLoadingError | errors.MasterDownError) or _is_unreachable(e):
        return None
    is_nonsense = any(
        isinstance(cause, errors.InvalidResponse) or "Bad response from PING" in str(cause) for cause in chain(e)
    )
    return _wrong_protocol(url) or (NO_REDIS if is_nonsense else None)


def _refused_by_server(e: BaseException) -> str | None:
    """The first words of Redis' error replies are stable; redis-py has a class for some of them only."""
    text = str(e)
    match e:
        case _ if "no password is set" in text or "without any password configured" in text:
            return "has no password for this user; remove the password from the URL"
        case _ if "Authentication required" in text or "NOAUTH" in text:
            return "requires a password; put it into the URL as redis://:PASSWORD@HOST or redis://USER:PASSWORD@HOST"
        case errors.AuthenticationError() | errors.AuthorizationError() | errors.AuthenticationWrongNumberOfArgsError():
            return "rejects the user or password in the URL; correct them"
        case errors.NoPermissionError():
            return f"denies this user what ivmix needs ({text}); docs/operations.md lists the permissions"
        case errors.ReadOnlyError():
            return "is a read-only replica; use the address of the primary"
        case errors.ClusterDownError() | errors.MovedError() | errors.ClusterCrossSlotError() if not isinstance(
            e, errors.MasterDownError
        ):
            return "runs in cluster mode, which ivmix does not support; use a server without it"
        case _ if "DB index" in text or "invalid DB" in text or "SELECT is not allowed" in text:
            return f"does not have the database of the URL ({text}); use /0"
        case _ if "unknown command" in text and "HELLO" in text.upper():
            return f"is older than Redis {dotted(OLDEST)}; upgrade it"
        case _ if "DENIED" in text:
            return "is in protected mode and accepts only local clients; set a password on the server and in the URL"
        case _:
            return None


def _refused_by_tls(e: BaseException, url: str) -> str | None:
    match e:
        case ssl.SSLCertVerificationError():
            return (
                f"has a certificate that is not trusted: {e.verify_message}; "
                f"set {TLS_OPTIONS['ssl_ca_certs']} to its CA's, or give the server a valid certificate"
            )
        case FileNotFoundError() | PermissionError() | IsADirectoryError() if split_url(url).scheme == "rediss":
            files = ", ".join(TLS_OPTIONS.values())
            return f"cannot be used: a certificate or key file cannot be read ({e.strerror}); correct {files}"
        case PermissionError() if split_url(url).scheme == "unix":
            return "is a socket that this user may not open; add the user to the socket's group"
        case ssl.SSLError() if "CERTIFICATE_REQUIRED" in str(e):
            return _CERTIFICATE_REQUIRED
        case ssl.SSLError() if any(word in str(e) for word in ("ALERT", "PEM", "KEY_VALUES", "PASSWORD")):
            return f"ends the TLS handshake ({e.reason or e}); correct {_CLIENT_FILES}, or the ssl_ options of the URL"
        case _:
            return None


def _is_unreachable(e: Exception) -> bool:
    kinds = (ConnectionRefusedError, socket.gaierror, FileNotFoundError)
    return any(isinstance(cause, kinds) for cause in chain(e))


def _wrong_protocol(url: str) -> str | None:
    """Ask the server itself: clients report the wrong protocol as timeouts, resets or nonsense."""
    if is_sentinel(url):
        return None  # each connection goes to the server that the Sentinels name
    parts = split_url(url)
    if parts.scheme == "unix":
        return None
    address = parts.hostname or "localhost", parts.port or 6379
    speech = listen(*address, TIMEOUT_S / 2)
    if parts.scheme == "rediss" and speech is Speech.TLS:
        speech = listen_through_tls(*address, TIMEOUT_S / 2)
        if speech is Speech.ASKS_FOR_CERTIFICATE:
            return _CERTIFICATE_REQUIRED
        return NO_REDIS if speech is Speech.OTHER else None
    if parts.scheme == "rediss" and speech is Speech.REDIS:
        return "does not speak TLS; use redis:// instead of rediss://"
    if parts.scheme == "redis" and speech is Speech.TLS:
        return "speaks TLS; use rediss:// instead of redis://"
    return NO_REDIS if speech is Speech.OTHER else None


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def chain(e: BaseException | None) -> Iterator[BaseException]:
    while e is not None:
        yield e
        e = e.__cause__ or e.__context__


def short(e: Exception) -> str:
    """The operating system's words where there are some."""
    for cause in chain(e):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return str(e).rstrip(".") or type(e).__name__
