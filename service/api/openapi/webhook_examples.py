"""Examples for the contract's webhook operations, made as `examples.py` makes the others."""

from __future__ import annotations

from typing import Any

from service.api.webhook_schemas import (
    DeletedWebhookEndpoint,
    WebhookAttempt,
    WebhookCallbackSecret,
    WebhookDelivery,
    WebhookDeliveryList,
    WebhookEndpoint,
    WebhookEndpointList,
    WebhookEndpointTest,
    WebhookEndpointWithSecret,
    WebhookEventTypeList,
)
from service.jobs.model import EVENT_TYPES
from service.webhooks.deliveries import State

_AT = 1795392000  # 2026-11-23
_RECEIVER: dict[str, Any] = {
    "name": "my app",
    "url": "https://app.example.com/hooks",
    "event_types": ["video.completed", "video.failed"],
}
_SIGNING = "whsec_" + "A" * 43 + "="  # an example

REQUESTS: dict[str, dict[str, Any]] = {
    "create_webhook_endpoint": {"a receiver": _RECEIVER},
    "update_webhook_endpoint": {"another address": {"url": "https://app.example.com/hooks/2"}},
    "rotate_webhook_secret": {"no hurry": {"keep_old_secret_active_for_24_hours": True}},
    "test_webhook_endpoint": {"a video": {"event_type": "video.completed"}},
    "rotate_webhook_callback_secret": {"no hurry": {"keep_old_secret_active_for_24_hours": True}},
}


def answers() -> dict[str, Any]:
    """Example bodies by operation id."""
    known = {"id": "whe_019ab0d8a8007c3e", "created_at": _AT, "updated_at": _AT, "enabled": True, "disabled_at": None}
    endpoint = WebhookEndpoint(**known, **_RECEIVER, signing_secret_hint=_SIGNING[-4:])
    secret = WebhookEndpointWithSecret(**endpoint.model_dump(), signing_secret=_SIGNING)
    delivery = WebhookDelivery(
        id="whd_019ab0d8a8007c3e",
        event_id="evt_019ab0d8a8007c3e",
        event_type="video.completed",
        video_id="video_019ab0d8a8007c3e8f5d2b1c9e4a7f60",
        webhook_endpoint_id=endpoint.id,
        url=None,
        status=State.DELIVERED,
        created_at=_AT,
        next_attempt_at=None,
        completed_at=_AT + 1,
        error=None,
        attempt_count=1,
        attempts=[WebhookAttempt(at=_AT + 1.0, status_code=204, error=None, duration_s=0.05)],
    )
    tested = WebhookEndpointTest(webhook_endpoint_id=endpoint.id, event_type="video.completed", status_code=204)
    made = {
        "create_webhook_endpoint": secret,
        "list_webhook_endpoints": WebhookEndpointList(
            data=[endpoint], first_id=endpoint.id, last_id=endpoint.id, has_more=False
        ),
        "retrieve_webhook_endpoint": endpoint,
        "update_webhook_endpoint": endpoint,
        "delete_webhook_endpoint": DeletedWebhookEndpoint(id=endpoint.id),
        "rotate_webhook_secret": secret,
        "test_webhook_endpoint": tested,
        "list_webhook_event_types": WebhookEventTypeList(data=list(EVENT_TYPES)),
        "retrieve_webhook_callback_secret": WebhookCallbackSecret(signing_secret=_SIGNING),
        "rotate_webhook_callback_secret": WebhookCallbackSecret(signing_secret=_SIGNING),
        "list_webhook_deliveries": WebhookDeliveryList(
            data=[delivery], first_id=delivery.id, last_id=delivery.id, has_more=False
        ),
        "retrieve_webhook_delivery": delivery,
        "redeliver_webhook": delivery,
    }
    return {name: {"example": body.model_dump(mode="json")} for name, body in made.items()}
