"""Checks that a Sentinel of the URL can be used and knows the primary."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

from redis import exceptions as errors

from service.errors import ConfigurationError
from service.redis_connection.refusals import TIMEOUT_S, chain, refusal_reason, short
from service.redis_connection.sentinel import open_sentinels
from service.redis_connection.sentinel_url import SentinelUrl
from service.redis_connection.url_options import SENTINEL_OPTIONS, VARIABLE

USER, PASSWORD = SENTINEL_OPTIONS["sentinel_username"], SENTINEL_OPTIONS["sentinel_password"]


def absent_sentinels(url: SentinelUrl) -> str | None:
    """Why no Sentinel can be asked at present; None if one knows the primary.

    Raises:
        ConfigurationError: every Sentinel refuses us, or none of those that answer knows the service.
    """
    absent: list[str] = []
    refused: list[str] = []
    with ExitStack() as stack:
        for client, node in zip(open_sentinels(url, timeout_s=TIMEOUT_S), url.node_urls(), strict=True):
            stack.callback(client.close)
            problem, is_final = _problem(client, node, url.service)
            if problem is None:
                return None
            (refused if is_final else absent).append(f"{node.partition('//')[2]} {problem}")
    if not absent:
        raise ConfigurationError(f"{VARIABLE}: the Sentinel {refused[0]}")
    return "; ".join(absent + refused)


def _problem(client: Any, node: str, service: str) -> tuple[str | None, bool]:
    """What is wrong with one Sentinel, and whether that stays so."""
    try:
        known: Collection[str] = client.sentinel_masters()
    except (errors.RedisError, OSError) as e:
        reason = _refusal(e) or refusal_reason(e, node)
        return (reason, True) if reason else (f"does not answer ({short(e)})", False)
    except (AttributeError, TypeError, ValueError, LookupError):
        return "is not a Sentinel; correct host and port", True
    if service in known:
        return None, False
    names = f"only {', '.join(sorted(known))}" if known else "and no other"
    return f"knows no primary '{service}', {names}; correct the name behind the Sentinels in the URL", True


def _refusal(e: BaseException) -> str | None:
    """Refusals that mean something else than those of the primary."""
    for text in map(str, chain(e)):
        if "no password is set" in text or "without any password configured" in text:
            return f"has no password; unset {PASSWORD}"
        if any(words in text for words in ("NOAUTH", "already authenticated", "Authentication required")):
            return f"requires a password; set {PASSWORD}"
        if "unknown command" in text and "SENTINEL" in text.upper():
            return "is a server and no Sentinel; use redis://, or the port of the Sentinel (26379)"
    if any(isinstance(cause, errors.NoPermissionError) for cause in chain(e)):
        return "denies its user SENTINEL MASTERS; grant +sentinel|masters"
    if any(isinstance(cause, errors.AuthenticationError) for cause in chain(e)):
        return f"rejects user or password; correct {USER} and {PASSWORD}"
    return None
