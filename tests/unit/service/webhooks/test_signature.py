from __future__ import annotations

import base64
import time

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from service.webhooks.signature import MAX_SECRETS, SigningSecret, active, new_secret, rotated, signed_headers

NOW = 1_800_000_000


def test_the_published_vector_of_standard_webhooks_is_reproduced() -> None:
    secret = SigningSecret(value="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signed_headers(
        (secret,), webhook_id="msg_p5jXN8AQM9LWM0D4loKWxJek", timestamp=1614265330, body=b'{"test": 2432232314}'
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_new_secret_is_padded_standard_base64_of_enough_bytes() -> None:
    secrets = [new_secret().value for _ in range(50)]
    assert all(24 <= len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) <= 64 for secret in secrets)
    assert len(set(secrets)) == 50


def test_openais_verifier_accepts_what_we_sign_and_nothing_else() -> None:
    secret, other, now, body = new_secret(), new_secret(), int(time.time()), '{"id":"evt_1","type":"video.failed"}'
    headers = signed_headers((secret,), webhook_id="whd_1", timestamp=now, body=body.encode())
    webhooks = OpenAI(api_key="unused").webhooks
    webhooks.verify_signature(body, headers, secret=secret.value)
    for wrong in (
        lambda: webhooks.verify_signature(body + " ", headers, secret=secret.value),
        lambda: webhooks.verify_signature(body, headers, secret=other.value),
        lambda: webhooks.verify_signature(body, headers | {"webhook-id": "whd_2"}, secret=secret.value),
        lambda: webhooks.verify_signature(body, headers | {"webhook-timestamp": str(now + 1)}, secret=secret.value),
    ):
        with pytest.raises(InvalidWebhookSignatureError):
            wrong()


def test_after_a_rotation_both_secrets_sign_until_the_old_one_expires() -> None:
    old = (new_secret(),)
    both = rotated(old, keep_old_s=86_400, now=NOW)
    assert both[1].value == old[0].value
    assert len(active(both, now=NOW + 86_399)) == 2
    assert active(both, now=NOW + 86_400) == both[:1]
    headers = [
        signed_headers(both, webhook_id="whd_1", timestamp=NOW + later, body=b"{}")["webhook-signature"].split()
        for later in (0, 86_400)
    ]
    assert [len(signatures) for signatures in headers] == [2, 1]
    assert len(set(headers[0])) == 2


def test_a_rotation_without_grace_drops_the_old_secret_at_once() -> None:
    old = rotated((new_secret(),), keep_old_s=86_400, now=NOW)
    fresh = rotated(old, keep_old_s=0, now=NOW)
    assert len(fresh) == 1
    assert fresh[0].value not in {secret.value for secret in old}


def test_a_later_rotation_does_not_lengthen_the_life_of_an_old_secret() -> None:
    first = rotated((new_secret(),), keep_old_s=100, now=NOW)
    second = rotated(first, keep_old_s=86_400, now=NOW + 50)
    assert [secret.expires_at for secret in second] == [None, NOW + 50 + 86_400, NOW + 100]


def test_rotating_in_a_loop_keeps_few_secrets() -> None:
    secrets = (new_secret(),)
    for _ in range(20):
        secrets = rotated(secrets, keep_old_s=86_400, now=NOW)
    assert len(secrets) == MAX_SECRETS


def test_the_hint_does_not_reveal_the_secret() -> None:
    secret = new_secret()
    assert secret.hint == f"whsec_...{secret.value[-4:]}"
