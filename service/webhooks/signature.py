"""Signatures of Standard Webhooks (HMAC-SHA256), as `client.webhooks.unwrap` of the OpenAI SDKs checks them.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

from service.frozen_model import FrozenModel

PREFIX = "whsec_"
KEY_BYTES = 32  # the specification allows 24 to 64
MAX_SECRETS = 3  # per receiver; bounds the signature header if secrets are rotated in a loop


class SigningSecret(FrozenModel):
    """`value` is whsec_ and standard padded base64, the only form that OpenAI's verifier accepts."""

    value: str
    expires_at: float | None = None  # unix seconds; None if it does not expire

    @property
    def hint(self) -> str:
        return f"{PREFIX}...{self.value[-4:]}"


Secrets = tuple[SigningSecret, ...]  # newest first


def new_secret() -> SigningSecret:
    return SigningSecret(value=PREFIX + base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode())


def rotated(old: Secrets, *, keep_old_s: float, now: float) -> Secrets:
    """A new secret, followed by the old ones: they expire within `keep_old_s` seconds, or are dropped if that is 0."""
    until = now + keep_old_s
    kept = (
        secret.model_copy(update={"expires_at": min(secret.expires_at or until, until)})
        for secret in active(old, now=now)
        if keep_old_s
    )
    return (new_secret(), *kept)[:MAX_SECRETS]


def active(all_secrets: Secrets, *, now: float) -> Secrets:
    return tuple(secret for secret in all_secrets if secret.expires_at is None or secret.expires_at > now)


def signed_headers(all_secrets: Secrets, *, webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """`timestamp` is the attempt's, in unix seconds: receivers reject one that is more than five minutes off."""
    signatures = (_sign(secret, webhook_id, timestamp, body) for secret in active(all_secrets, now=timestamp))
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def _sign(secret: SigningSecret, webhook_id: str, timestamp: int, body: bytes) -> str:
    key = base64.b64decode(secret.value.removeprefix(PREFIX))
    digest = hmac.digest(key, b"%s.%d.%s" % (webhook_id.encode(), timestamp, body), hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"
