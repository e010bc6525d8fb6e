"""Sessions of browsers: a cookie that stands for an API key, which scripts of the page never see.

The cookie holds the SHA-256 of the key, an expiry and a signature. The key is looked up at every request, so that a
session ends when its key is revoked.
"""

from __future__ import annotations

import time

from service.signatures import Signer

COOKIE = "ivmix_session"
LIFETIME_S = 7 * 86_400
PURPOSE = "session"


def new_cookie(key_digest: str, signer: Signer) -> tuple[str, int]:
    """The value of the cookie, and when it expires in unix seconds."""
    until = int(time.time()) + LIFETIME_S
    return f"{key_digest}.{until}.{signer.sign(PURPOSE, key_digest, str(until))}", until


def key_digest(cookie: str, signer: Signer) -> str | None:
    """The digest of the key, or None if the cookie was changed or has expired."""
    digest, _, rest = cookie.partition(".")
    until, _, signature = rest.partition(".")
    if not signer.is_valid(signature, PURPOSE, digest, until):
        return None
    return digest if int(until) > time.time() else None


def expires_at(cookie: str) -> int:
    """Unix seconds; of a cookie that `key_digest` accepted."""
    return int(cookie.split(".")[1])
