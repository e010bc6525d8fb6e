"""What comes in and goes out at /v1/webhook_..., and the payload of an event. PipeChannel shapes as in openai 3.54's
`client.webhooks`; what is ours beyond that stands below a blank line."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import HTTPException, Request
from pydantic import AfterValidator, BaseModel, Field, StrictBool, ValidationError

from service.api.parsing import read_bytes, read_json
from service.base import FrozenModel
from service.catalog.model_entry import invalid_parameter
from service.jobs.model import EVENT_TYPES, EventType
from service.webhooks.deliveries import Delivery
from service.webhooks.endpoints import Endpoint
from service.webhooks.retry_policy import State
from service.webhooks.url_policy import MAX_URL
from service.wire.video import ResponseModel

M = TypeVar("M", bound=BaseModel)


def _once_each(types: tuple[EventType, ...]) -> tuple[EventType, ...]:
    return tuple(dict.fromkeys(types))


Name = Annotated[str, Field(min_length=1, max_length=256, description="for people", examples=["orders"])]
Url = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_URL,
        description="https, at a public address or one the operator allows",
        examples=["https://app.example.com/hooks/video"],
    ),
]
EventTypes = Annotated[
    tuple[EventType, ...],
    Field(min_length=1, max_length=16, examples=[list(EVENT_TYPES)]),
    AfterValidator(_once_each),
]


class NewEndpoint(FrozenModel):
    name: Name
    url: Url
    event_types: EventTypes


class EndpointChange(FrozenModel):
    """What is left out stays as it is."""

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None


class Rotation(FrozenModel):
    keep_old_secret_active_for_24_hours: StrictBool = False


class TestRequest(FrozenModel):
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

    enabled: bool = Field(description="false after a receiver has answered 410; any update enables it again")
    disabled_at: int | None


class WebhookEndpointWithSecret(WebhookEndpoint):
    signing_secret: str = Field(description="shown here and never again")


class WebhookEndpointList(ResponseModel):
    object: Literal["list"] = "list"
    data: list[WebhookEndpoint]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedWebhookEndpoint(ResponseModel):
    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class WebhookEndpointTest(ResponseModel):
    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: EventType
    status_code: int = Field(description="what the receiver answered, whatever it was")
    success: Literal[True] = True


class WebhookEventTypeList(ResponseModel):
    object: Literal["list"] = "list"
    data: list[EventType]


class WebhookCallbackSecret(ResponseModel):
    object: Literal["webhook_callback_secret"] = "webhook_callback_secret"
    signing_secret: str


class WebhookAttempt(ResponseModel):
    at: float = Field(description="unix seconds")
    status_code: int | None = Field(description="null if there was no answer")
    error: str | None = Field(
        description="null if delivered, else: bad_status, redirect, reply_too_large, timeout, no_connection, "
        "connection_lost, tls_failed, not_http, name_not_resolved, refused_url, internal_error"
    )
    duration_s: float


class WebhookDelivery(ResponseModel):
    id: str = Field(description="the webhook-id header of every attempt: the key to drop duplicates by")
    object: Literal["webhook_delivery"] = "webhook_delivery"
    event_id: str
    event_type: EventType
    video_id: str
    webhook_endpoint_id: str | None = Field(description="null for a request's callback_url")
    url: str | None = Field(description="a request's callback_url; null for an endpoint's")
    status: State
    created_at: int
    next_attempt_at: float | None = Field(description="unix seconds; null once it has ended")
    completed_at: int | None
    error: str | None = Field(description="of the last attempt, or endpoint_deleted, endpoint_disabled, attempts_lost")
    attempt_count: int
    attempts: list[WebhookAttempt] = Field(description="the newest ones, oldest first")


class WebhookDeliveryList(ResponseModel):
    object: Literal["list"] = "list"
    data: list[WebhookDelivery]
    first_id: str | None
    last_id: str | None
    has_more: bool


def body_of(model: type[M]) -> Callable[[Request], Awaitable[M]]:
    """A dependency that reads JSON. No body at all is the same as {}."""

    async def read(request: Request) -> M:
        raw = await read_bytes(request, request.app.state.services.settings.max_body_bytes)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if raw and kind != "application/json":
            raise HTTPException(415, "Send the body as application/json.")
        try:
            return model.model_validate(read_json(raw) if raw else {})
        except ValidationError as e:
            raise invalid_parameter(e) from e

    return read


def described(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """The same for the contract, which cannot see into `body_of`."""
    schema = model.model_json_schema()
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def endpoint_answer(endpoint: Endpoint) -> WebhookEndpoint:
    return WebhookEndpoint(**_fields(endpoint))


def endpoint_with_secret(endpoint: Endpoint) -> WebhookEndpointWithSecret:
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


def delivery_answer(delivery: Delivery) -> WebhookDelivery:
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
