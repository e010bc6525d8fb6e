"""Request and response bodies of /v1/webhook_...: shapes of `client.webhooks` in openai 3.54, then extensions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, AliasPath, BeforeValidator, ConfigDict, Field, StrictBool

from service.api.schemas import Page
from service.frozen_model import FrozenModel
from service.jobs.model import EVENT_TYPES, EventType
from service.webhooks.retry_policy import State
from service.webhooks.url_policy import MAX_URL
from service.wire.video import ResponseModel

UnixSeconds = Annotated[int, BeforeValidator(int)]  # records have fractions


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
    # made from an `Endpoint`, or by the names of these fields
    model_config = ConfigDict(validate_by_name=True)

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: UnixSeconds
    updated_at: UnixSeconds
    event_types: list[EventType]
    name: str
    url: str
    signing_secret_hint: str = Field(validation_alias=AliasPath("secrets", 0, "hint"))

    enabled: bool = Field(
        validation_alias="is_enabled", description="false after a receiver answered 410; any update enables it again"
    )
    disabled_at: UnixSeconds | None


class WebhookEndpointWithSecret(WebhookEndpoint):
    signing_secret: str = Field(validation_alias=AliasPath("secrets", 0, "value"), description="Only returned here")


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
    # made from a `Delivery`
    id: str = Field(description="Sent as the header webhook-id with every attempt; use it to drop duplicates")
    object: Literal["webhook_delivery"] = "webhook_delivery"
    event_id: str
    event_type: EventType
    video_id: str = Field(description="An invented id if it was a test event")
    webhook_endpoint_id: str | None = Field(
        validation_alias="endpoint_id", description="null for the callback_url of a video"
    )
    url: str | None = Field(description="The callback_url of a video; null for an endpoint")
    status: State = Field(validation_alias="state")
    created_at: UnixSeconds
    next_attempt_at: float | None = Field(description="Unix seconds; null once delivered or failed")
    completed_at: UnixSeconds | None = Field(validation_alias="ended_at")
    error: str | None = Field(
        description="Error of the last attempt, or endpoint_deleted, endpoint_disabled, attempts_lost"
    )
    attempt_count: int = Field(validation_alias="attempts")
    attempts: list[WebhookAttempt] = Field(validation_alias="log", description="The most recent attempts, oldest first")


class WebhookDeliveryList(Page[WebhookDelivery]):
    pass
