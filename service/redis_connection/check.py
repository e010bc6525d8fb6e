"""Checks once that the server behind IVMIX_REDIS_URL can be used, and says why it cannot.

A server that is absent (RedisAway) may appear later. One that refuses us does not get better by waiting
(ConfigurationError): wrong password, missing permissions, certificate, cluster mode, old version, replica.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

from redis import exceptions as errors

from service.errors import ConfigurationError
from service.redis_connection.client import VARIABLE, address_of, open_redis, split_url
from service.redis_connection.permissions import denied_permissions
from service.redis_connection.wire_probe import Speech, listen, listen_through_tls

TIMEOUT_S = 2.0
OLDEST = (6, 2)
NO_REDIS = "is not a Redis server; correct host and port"


class RedisAway(Exception):
    """The server cannot be reached at the moment, for the reason in the message."""


def check_redis(url: str) -> None:
    """
    Raises:
        ConfigurationError: the server or the URL must be changed; one sentence that names IVMIX_REDIS_URL.
        RedisAway: no server answers.
    """
    redis: Any = open_redis(url, reply_timeout_s=TIMEOUT_S, connect_timeout_s=TIMEOUT_S, retries=0)
    try:
        hello = _as_text(redis.execute_command("HELLO"))
        if problem := _unsuitable(hello) or denied_permissions(redis):
            raise _refusal(url, problem)
    except (errors.RedisError, OSError) as e:
        if problem := refusal_reason(e, url):
            raise _refusal(url, problem) from e
        raise RedisAway(f"{VARIABLE}: no Redis answers at {address_of(url)} ({_short(e)})") from e
    except (AttributeError, TypeError, ValueError, LookupError) as e:  # redis-py expected another kind of reply
        raise _refusal(url, NO_REDIS) from e
    finally:
        redis.close()


def refusal_reason(e: Exception, url: str) -> str | None:
    """What must be changed so that the server accepts us; None if waiting may help."""
    for cause in _chain(e):
        if problem := _refused_by_tls(cause, url) or _refused_by_server(cause):
            return problem
    if isinstance(e, errors.BusyLoadingError | errors.MasterDownError) or _is_unreachable(e):
        return None
    is_nonsense = any(
        isinstance(cause, errors.InvalidResponse) or "Bad response from PING" in str(cause) for cause in _chain(e)
    )
    return _wrong_protocol(url) or (NO_REDIS if is_nonsense else None)


def _refusal(url: str, problem: str) -> ConfigurationError:
    return ConfigurationError(f"{VARIABLE}: {address_of(url)} {problem}")


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
            return f"is older than Redis {_dotted(OLDEST)}; upgrade it"
        case _ if "DENIED" in text:
            return "is in protected mode and accepts only local clients; set a password on the server and in the URL"
        case _:
            return None


def _refused_by_tls(e: BaseException, url: str) -> str | None:
    match e:
        case ssl.SSLCertVerificationError():
            return (
                f"has a certificate that is not trusted: {e.verify_message}; "
                "append ?ssl_ca_certs=/PATH/ca.pem to the URL, or give the server a valid certificate"
            )
        case FileNotFoundError() | PermissionError() | IsADirectoryError() if split_url(url).scheme == "rediss":
            return (
                f"cannot be used: a certificate or key file in the URL cannot be read ({e.strerror}); correct its path"
            )
        case PermissionError() if split_url(url).scheme == "unix":
            return "is a socket that this user may not open; add the user to the socket's group"
        case ssl.SSLError() if any(word in str(e) for word in ("ALERT", "PEM", "KEY_VALUES", "PASSWORD")):
            return f"ends the TLS handshake ({e.reason or e}); correct the ssl_ options of the URL"
        case _:
            return None


def _is_unreachable(e: Exception) -> bool:
    kinds = (ConnectionRefusedError, socket.gaierror, FileNotFoundError)
    return any(isinstance(cause, kinds) for cause in _chain(e))


def _wrong_protocol(url: str) -> str | None:
    """Ask the server itself: clients report the wrong protocol as timeouts, resets or nonsense."""
    parts = split_url(url)
    if parts.scheme == "unix":
        return None
    address = parts.hostname or "localhost", parts.port or 6379
    speech = listen(*address, TIMEOUT_S / 2)
    if parts.scheme == "rediss" and speech is Speech.TLS:
        speech = listen_through_tls(*address, TIMEOUT_S / 2)
        return NO_REDIS if speech is Speech.OTHER else None
    if parts.scheme == "rediss" and speech is Speech.REDIS:
        return "does not speak TLS; use redis:// instead of rediss://"
    if parts.scheme == "redis" and speech is Speech.TLS:
        return "speaks TLS; use rediss:// instead of redis://"
    return NO_REDIS if speech is Speech.OTHER else None


def _unsuitable(hello: Mapping[str, Any]) -> str | None:
    numbers = re.findall(r"\d+", str(hello.get("version", "")))[:2]
    version = tuple(int(number) for number in numbers)
    if version and version < OLDEST:
        return f"is version {hello['version']}; ivmix needs Redis {_dotted(OLDEST)} or newer, or Valkey"
    if hello.get("mode") == "cluster":
        return "runs in cluster mode, which ivmix does not support; use a server without it"
    if hello.get("mode") == "sentinel":
        return "is a Sentinel, which stores nothing; use the address of the primary"
    if hello.get("role") in ("slave", "replica"):
        return "is a read-only replica; use the address of the primary"
    return None


def _as_text(reply: Any) -> dict[str, Any]:
    """HELLO's reply is a map, or with the older protocol a flat list."""
    pairs: Any = reply.items() if hasattr(reply, "items") else zip(reply[::2], reply[1::2], strict=False)
    return {_text(name): _text(value) for name, value in pairs}


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _chain(e: BaseException | None) -> Iterator[BaseException]:
    while e is not None:
        yield e
        e = e.__cause__ or e.__context__


def _short(e: Exception) -> str:
    """The operating system's words where there are some."""
    for cause in _chain(e):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return str(e).rstrip(".") or type(e).__name__
