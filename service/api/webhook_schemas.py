"""Request and response bodies of /v1/webhook_...: shapes of `client.webhooks` in openai 3.54, then extensions."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, StrictBool

from service.api.schemas import Page
from service.frozen_model import FrozenModel
from service.jobs.model import EVENT_TYPES, EventType
from service.webhooks.deliveries import Delivery
from service.webhooks.endpoints import Endpoint
from service.webhooks.retry_policy import State
from service.webhooks.url_policy import MAX_URL
from service.wire.video import ResponseModel

M = TypeVar("M", bound=BaseModel)


def _unique(types: tuple[EventType, ...]) -> tuple[EventType, ...]:
    return tuple(dict.fromkeys(types))


Name = Annotated[str, Field(min_length=1, max_length=256, description="A label", examples=["orders"])]
Url = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_URL,
        description="An https URL with a public address, or one that the operator allows",
        examples=["https://app.example.com/hooks/video"],
    ),
]
EventTypes = Annotated[
    tuple[EventType, ...], Field(min_length=1, max_length=16, examples=[list(EVENT_TYPES)]), AfterValidator(_unique)
]


class CreateEndpointRequest(FrozenModel):
    name: Name
    url: Url
    event_types: EventTypes


class UpdateEndpointRequest(FrozenModel):
    """Omitted fields are not changed."""

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None


class RotateSecretRequest(FrozenModel):
    keep_old_secret_active_for_24_hours: StrictBool = False


class TestEndpointRequest(FrozenModel):
    event_type: EventType


class WebhookEndpoint(ResponseModel):
    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    event_types: list[EventType]
    name: str
    url: str
    signing_secret_hint: str

    enabled: bool = Field(description="false after a receiver answered 410; any update enables it again")
    disabled_at: int | None


class WebhookEndpointWithSecret(WebhookEndpoint):
    signing_secret: str = Field(description="Only returned here")


class WebhookEndpointList(Page[WebhookEndpoint]):
    pass


class DeletedWebhookEndpoint(ResponseModel):
    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class WebhookEndpointTest(ResponseModel):
    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: EventType
    status_code: int = Field(description="HTTP status of the receiver, also if it is an error")
    success: Literal[True] = True
    webhook_delivery_id: str = Field(description="The delivery of the test event")


class WebhookEventTypeList(ResponseModel):
    object: Literal["list"] = "list"
    data: list[EventType]


class WebhookCallbackSecret(ResponseModel):
    object: Literal["webhook_callback_secret"] = "webhook_callback_secret"
    signing_secret: str


class WebhookAttempt(ResponseModel):
    at: float = Field(description="Unix seconds")
    status_code: int | None = Field(description="null if there was no response")
    error: str | None = Field(
        description="null if delivered, otherwise bad_status, redirect, reply_too_large, timeout, no_connection, "
        "connection_lost, tls_failed, not_http, name_not_resolved, refused_url, internal_error"
    )
    duration_s: float


class WebhookDelivery(ResponseModel):
    id: str = Field(description="Sent as the header webhook-id with every attempt; use it to drop duplicates")
    object: Literal["webhook_delivery"] = "webhook_delivery"
    event_id: str
    event_type: EventType
    video_id: str = Field(description="An invented id if it was a test event")
    webhook_endpoint_id: str | None = Field(description="null for the callback_url of a video")
    url: str | None = Field(description="The callback_url of a video; null for an endpoint")
    status: State
    created_at: int
    next_attempt_at: float | None = Field(description="Unix seconds; null once delivered or failed")
    completed_at: int | None
    error: str | None = Field(
        description="Error of the last attempt, or endpoint_deleted, endpoint_disabled, attempts_lost"
    )
    attempt_count: int
    attempts: list[WebhookAttempt] = Field(description="The most recent attempts, oldest first")


class WebhookDeliveryList(Page[WebhookDelivery]):
    pass


def render_endpoint(endpoint: Endpoint) -> WebhookEndpoint:
    return WebhookEndpoint(**_fields(endpoint))


def render_endpoint_with_secret(endpoint: Endpoint) -> WebhookEndpointWithSecret:
    return WebhookEndpointWithSecret(**_fields(endpoint), signing_secret=endpoint.secrets[0].value)


def _fields(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "created_at": int(endpoint.created_at),
        "updated_at": int(endpoint.updated_at),
        "event_types": list(endpoint.event_types),
        "name": endpoint.name,
        "url": endpoint.url,
        "signing_secret_hint": endpoint.secrets[0].hint,
        "enabled": endpoint.is_enabled,
        "disabled_at": None if endpoint.disabled_at is None else int(endpoint.disabled_at),
    }


def render_delivery(delivery: Delivery) -> WebhookDelivery:
    return WebhookDelivery(
        id=delivery.id,
        event_id=delivery.event_id,
        event_type=delivery.event_type,
        video_id=delivery.video_id,
        webhook_endpoint_id=delivery.endpoint_id,
        url=delivery.url,
        status=delivery.state,
        created_at=int(delivery.created_at),
        next_attempt_at=delivery.next_attempt_at if delivery.state is State.PENDING else None,
        completed_at=None if delivery.ended_at is None else int(delivery.ended_at),
        error=delivery.error,
        attempt_count=delivery.attempts,
        attempts=[WebhookAttempt.model_validate(attempt) for attempt in delivery.log],
    )
