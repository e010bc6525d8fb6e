"""Adds the settings of TLS and Sentinel to IVMIX_REDIS_URL, as the options that its clients read."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qs, quote

from service.redis_connection.sentinel_url import is_sentinel

VARIABLE = "IVMIX_REDIS_URL"

# Option of the URL -> the setting that is a better place for it.
TLS_OPTIONS = {
    "ssl_ca_certs": "IVMIX_REDIS_CA_FILE",
    "ssl_certfile": "IVMIX_REDIS_CERT_FILE",
    "ssl_keyfile": "IVMIX_REDIS_KEY_FILE",
}
SENTINEL_OPTIONS = {
    "sentinel_username": "IVMIX_REDIS_SENTINEL_USER",
    "sentinel_password": "IVMIX_REDIS_SENTINEL_PASSWORD",
}


def with_options(url: str, options: Mapping[str, str | None]) -> str:
    """The URL with those of these options that have a value."""
    added = "&".join(f"{name}={quote(value, safe='')}" for name, value in options.items() if value is not None)
    return f"{url}{'&' if '?' in url else '?'}{added}" if added else url


def option_problem(url: str | None, options: Mapping[str, str | None]) -> str | None:
    """Why these options do not belong to the URL, and what to do; None if they do. No value is a secret's."""
    given = {name for name, value in options.items() if value is not None}
    twice = given & parse_qs((url or "").partition("?")[2]).keys()
    for name, setting in {**TLS_OPTIONS, **SENTINEL_OPTIONS}.items():
        if name in given and url is None:
            return f"{setting} is set, but {VARIABLE} is not; set both, or none for the embedded server"
        if name in twice:
            return f"{setting} is set, and {VARIABLE} contains ?{name}= as well; keep one of them"
        if name in given and name in TLS_OPTIONS and not (url or "").startswith("rediss"):
            return (
                f"{setting} is set, but {VARIABLE} does not use TLS; let it begin with rediss:// or rediss+sentinel://"
            )
        if name in given and name in SENTINEL_OPTIONS and not is_sentinel(url or ""):
            return f"{setting} is set, but {VARIABLE} names no Sentinels; let it begin with redis+sentinel://"
    if len(given & {"ssl_certfile", "ssl_keyfile"}) == 1:
        return "IVMIX_REDIS_CERT_FILE and IVMIX_REDIS_KEY_FILE belong together; set both or none"
    return None
