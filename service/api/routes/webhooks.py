"""/v1/webhook_...: receivers, their signing secrets, and deliveries."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from service.api.auth import WebhookOwner
from service.api.cursors import cursor, cursor_schema
from service.api.json_body import read_json_body
from service.api.openapi.responses import errors, json_body, success
from service.api.webhook_schemas import (
    CreateEndpointRequest,
    DeletedWebhookEndpoint,
    RotateSecretRequest,
    UpdateEndpointRequest,
    WebhookCallbackSecret,
    WebhookDelivery,
    WebhookDeliveryList,
    WebhookEndpoint,
    WebhookEndpointList,
    WebhookEndpointWithSecret,
    WebhookEventTypeList,
)
from service.jobs.model import EVENT_TYPES
from service.wire.webhook import WebhookEvent
from service.wiring import Webhooks

router = APIRouter(prefix="/v1", tags=["webhooks"])

_BODY_ERRORS = errors(400, 413, 415)

Limit = Annotated[int, Query(ge=1, le=100)]
Id = Annotated[str, Field(max_length=64)] | SkipJsonSchema[None]
_AFTER = Query(description="The last id of the previous page")
AfterEndpoint = Annotated[Annotated[str, cursor("we"), cursor_schema("we")] | SkipJsonSchema[None], _AFTER]
AfterDelivery = Annotated[Annotated[str, cursor("whd"), cursor_schema("whd")] | SkipJsonSchema[None], _AFTER]


def get_webhooks(request: Request) -> Webhooks:
    return request.app.state.services.webhooks


WebhooksDep = Annotated[Webhooks, Depends(get_webhooks)]


@router.post(
    "/webhook_endpoints",
    summary="Register a webhook endpoint",
    responses=success("WebhookEndpointWithSecret") | _BODY_ERRORS,
    openapi_extra=json_body(CreateEndpointRequest, "CreateWebhookEndpoint"),
)
def create_webhook_endpoint(
    owner: WebhookOwner,
    body: Annotated[CreateEndpointRequest, Depends(read_json_body(CreateEndpointRequest))],
    webhooks: WebhooksDep,
) -> WebhookEndpointWithSecret:
    webhooks.url_policy.check(body.url, "url")
    created = webhooks.endpoints.create(owner, name=body.name, url=body.url, event_types=body.event_types)
    return WebhookEndpointWithSecret.model_validate(created)


@router.get(
    "/webhook_endpoints", summary="List webhook endpoints", responses=success("WebhookEndpointList") | errors(400)
)
def list_webhook_endpoints(
    webhooks: WebhooksDep, owner: WebhookOwner, limit: Limit = 20, after: AfterEndpoint = None
) -> WebhookEndpointList:
    endpoints, has_more = webhooks.endpoints.list(owner, limit=limit, after=after)
    return WebhookEndpointList.of([WebhookEndpoint.model_validate(found) for found in endpoints], has_more=has_more)


@router.get(
    "/webhook_endpoints/{webhook_endpoint_id}",
    summary="Retrieve a webhook endpoint",
    responses=success("WebhookEndpoint") | errors(404),
)
def retrieve_webhook_endpoint(webhook_endpoint_id: str, webhooks: WebhooksDep, owner: WebhookOwner) -> WebhookEndpoint:
    return WebhookEndpoint.model_validate(webhooks.endpoints.get(owner, webhook_endpoint_id))


@router.post(
    "/webhook_endpoints/{webhook_endpoint_id}",
    summary="Update a webhook endpoint",
    description="Enables the endpoint again if it was disabled.",
    responses=success("WebhookEndpoint") | _BODY_ERRORS | errors(404),
    openapi_extra=json_body(UpdateEndpointRequest, "UpdateWebhookEndpoint", required=False),
)
def update_webhook_endpoint(
    webhook_endpoint_id: str,
    owner: WebhookOwner,
    body: Annotated[UpdateEndpointRequest, Depends(read_json_body(UpdateEndpointRequest))],
    webhooks: WebhooksDep,
) -> WebhookEndpoint:
    webhooks.endpoints.get(owner, webhook_endpoint_id)
    if body.url is not None:
        webhooks.url_policy.check(body.url, "url")
    changes = {name: value for name, value in body if value is not None}
    return WebhookEndpoint.model_validate(webhooks.endpoints.update(owner, webhook_endpoint_id, **changes))


@router.delete(
    "/webhook_endpoints/{webhook_endpoint_id}",
    summary="Delete a webhook endpoint",
    responses=success("DeletedWebhookEndpoint") | errors(404),
)
def delete_webhook_endpoint(
    webhook_endpoint_id: str, webhooks: WebhooksDep, owner: WebhookOwner
) -> DeletedWebhookEndpoint:
    webhooks.endpoints.delete(owner, webhook_endpoint_id)
    return DeletedWebhookEndpoint(id=webhook_endpoint_id)


_RotateBody = Annotated[RotateSecretRequest, Depends(read_json_body(RotateSecretRequest))]
_ROTATE_BODY = json_body(RotateSecretRequest, "RotateWebhookSecret", required=False)


@router.post(
    "/webhook_endpoints/{webhook_endpoint_id}/rotate_secret",
    summary="Rotate a signing secret",
    description="If the old secret is kept active, events are signed with both secrets for 24 hours.",
    responses=success("WebhookEndpointWithSecret") | _BODY_ERRORS | errors(404),
    openapi_extra=_ROTATE_BODY,
)
def rotate_webhook_secret(
    webhook_endpoint_id: str, owner: WebhookOwner, body: _RotateBody, webhooks: WebhooksDep
) -> WebhookEndpointWithSecret:
    keep = body.keep_old_secret_active_for_24_hours
    rotated = webhooks.endpoints.rotate(owner, webhook_endpoint_id, keep_old=keep)
    return WebhookEndpointWithSecret.model_validate(rotated)


@router.get("/webhook_event_types", summary="List event types", responses=success("WebhookEventTypeList"))
def list_webhook_event_types(_owner: WebhookOwner) -> WebhookEventTypeList:
    return WebhookEventTypeList(data=list(EVENT_TYPES))


@router.get(
    "/webhook_callback_secret",
    summary="Retrieve the secret that signs requests to a callback_url",
    responses=success("WebhookCallbackSecret"),
)
def retrieve_webhook_callback_secret(webhooks: WebhooksDep, owner: WebhookOwner) -> WebhookCallbackSecret:
    return WebhookCallbackSecret(signing_secret=webhooks.endpoints.callback_secrets(owner)[0].value)


@router.post(
    "/webhook_callback_secret/rotate_secret",
    summary="Rotate the secret that signs requests to a callback_url",
    description="If the old secret is kept active, events are signed with both secrets for 24 hours.",
    responses=success("WebhookCallbackSecret") | _BODY_ERRORS,
    openapi_extra=_ROTATE_BODY,
)
def rotate_webhook_callback_secret(
    owner: WebhookOwner, body: _RotateBody, webhooks: WebhooksDep
) -> WebhookCallbackSecret:
    secrets = webhooks.endpoints.rotate_callback_secret(owner, keep_old=body.keep_old_secret_active_for_24_hours)
    return WebhookCallbackSecret(signing_secret=secrets[0].value)


@router.get(
    "/webhook_deliveries", summary="List webhook deliveries", responses=success("WebhookDeliveryList") | errors(400)
)
def list_webhook_deliveries(
    webhooks: WebhooksDep,
    owner: WebhookOwner,
    video_id: Annotated[Id, Query(description="Only deliveries about this video")] = None,
    limit: Limit = 20,
    after: AfterDelivery = None,
) -> WebhookDeliveryList:
    deliveries, has_more = webhooks.deliveries.list(owner, video_id=video_id, limit=limit, after=after)
    return WebhookDeliveryList.of([WebhookDelivery.model_validate(found) for found in deliveries], has_more=has_more)


@router.get(
    "/webhook_deliveries/{webhook_delivery_id}",
    summary="Retrieve a webhook delivery",
    responses=success("WebhookDelivery") | errors(404),
)
def retrieve_webhook_delivery(webhook_delivery_id: str, webhooks: WebhooksDep, owner: WebhookOwner) -> WebhookDelivery:
    return WebhookDelivery.model_validate(webhooks.deliveries.get(owner, webhook_delivery_id))


@router.post(
    "/webhook_deliveries/{webhook_delivery_id}/redeliver",
    summary="Deliver an event again",
    description="The next attempt is made immediately, with the same webhook-id. Test events and redeliveries are "
    "limited per minute.",
    responses=success("WebhookDelivery") | errors(404, 429),
)
def redeliver_webhook(
    request: Request, webhook_delivery_id: str, webhooks: WebhooksDep, owner: WebhookOwner
) -> WebhookDelivery:
    delivery = webhooks.deliveries.get(owner, webhook_delivery_id)
    endpoint = webhooks.endpoints.find(delivery.endpoint_id or "")
    url = delivery.url or (endpoint.url if endpoint else None)
    request.app.state.rate_limiter.check_webhook(owner, url)
    return WebhookDelivery.model_validate(webhooks.deliveries.redeliver(owner, webhook_delivery_id))


# The requests that this service sends; they exist in the OpenAPI description only.
events = APIRouter(
    tags=["webhooks"], default_response_class=Response, generate_unique_id_function=lambda route: route.name
)
_RECEIVER_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Delivered, like any 2xx. Other statuses are retried for about three days. Redirects are not "
        "followed, and the response body is ignored."
    },
    410: {"description": "Disables the endpoint."},
}
_SIGNATURE_HEADERS = {
    "webhook-id": "Identifies the delivery; the same for every attempt",
    "webhook-timestamp": "Unix seconds of this attempt",
    "webhook-signature": "v1,base64(HMAC-SHA256(secret, id.timestamp.body)); several after a rotation, space-separated",
}
_EVENT: dict[str, Any] = {
    "responses": _RECEIVER_RESPONSES,
    "openapi_extra": {
        "parameters": [
            {"name": name, "in": "header", "required": True, "schema": {"type": "string"}, "description": text}
            for name, text in _SIGNATURE_HEADERS.items()
        ]
    },
}


@events.post("video.completed", summary="A video was completed", **_EVENT)
def video_completed(event: WebhookEvent) -> None: ...


@events.post("video.failed", summary="A video failed or was cancelled", **_EVENT)
def video_failed(event: WebhookEvent) -> None: ...
