"""/v1/webhook_...: who is told when a video has ended, how far that got, and the secrets that sign it."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from service.api.auth import WebhookOwner as Owner
from service.api.auth import Wired as Services
from service.api.errors import responses
from service.api.webhook_schemas import (
    DeletedWebhookEndpoint,
    EndpointChange,
    NewEndpoint,
    Rotation,
    TestRequest,
    WebhookCallbackSecret,
    WebhookDelivery,
    WebhookDeliveryList,
    WebhookEndpoint,
    WebhookEndpointList,
    WebhookEndpointTest,
    WebhookEndpointWithSecret,
    WebhookEventTypeList,
    body_of,
    delivery_answer,
    described,
    endpoint_answer,
    endpoint_with_secret,
)
from service.errors import WebhookTestFailed
from service.ids import new_id
from service.jobs.model import EVENT_TYPES
from service.webhooks.signature import signed_headers
from service.wire.video import Renderer
from service.wire.webhook import WebhookEvent, payload, sample_job
from service.wiring import Webhooks

router = APIRouter(prefix="/v1", tags=["webhooks"], responses=responses(401, 403, 500, 503))
# What we send, for the contract only.
events = APIRouter(
    tags=["webhooks"], default_response_class=Response, generate_unique_id_function=lambda route: route.name
)

_BODY = responses(400, 413, 415)

Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=64, description="the last id of the page before")]


def get_webhooks(request: Request) -> Webhooks:
    return request.app.state.services.webhooks


Wired = Annotated[Webhooks, Depends(get_webhooks)]


@router.post(
    "/webhook_endpoints",
    summary="Register a receiver; the answer holds its signing secret",
    responses=_BODY,
    openapi_extra=described(NewEndpoint),
)
def create_webhook_endpoint(
    wanted: Annotated[NewEndpoint, Depends(body_of(NewEndpoint))], webhooks: Wired, owner: Owner
) -> WebhookEndpointWithSecret:
    webhooks.url_policy.check(wanted.url, "url")
    created = webhooks.endpoints.create(owner, name=wanted.name, url=wanted.url, event_types=wanted.event_types)
    return endpoint_with_secret(created)


@router.get("/webhook_endpoints", summary="Registered receivers, newest first", responses=responses(400))
def list_webhook_endpoints(
    webhooks: Wired, owner: Owner, limit: Limit = 20, after: After = None
) -> WebhookEndpointList:
    endpoints, has_more = webhooks.endpoints.list(owner, limit=limit, after=after)
    return WebhookEndpointList(
        data=[endpoint_answer(endpoint) for endpoint in endpoints],
        **_page([endpoint.id for endpoint in endpoints]),
        has_more=has_more,
    )


@router.get("/webhook_endpoints/{webhook_endpoint_id}", summary="One receiver", responses=responses(404))
def retrieve_webhook_endpoint(webhook_endpoint_id: str, webhooks: Wired, owner: Owner) -> WebhookEndpoint:
    return endpoint_answer(webhooks.endpoints.get(owner, webhook_endpoint_id))


@router.post(
    "/webhook_endpoints/{webhook_endpoint_id}",
    summary="Change a receiver; enables it again if it was disabled",
    responses=_BODY | responses(404),
    openapi_extra=described(EndpointChange, required=False),
)
def update_webhook_endpoint(
    webhook_endpoint_id: str,
    wanted: Annotated[EndpointChange, Depends(body_of(EndpointChange))],
    webhooks: Wired,
    owner: Owner,
) -> WebhookEndpoint:
    webhooks.endpoints.get(owner, webhook_endpoint_id)
    if wanted.url is not None:
        webhooks.url_policy.check(wanted.url, "url")
    changes = {name: value for name, value in wanted if value is not None}
    return endpoint_answer(webhooks.endpoints.update(owner, webhook_endpoint_id, **changes))


@router.delete("/webhook_endpoints/{webhook_endpoint_id}", summary="Remove a receiver", responses=responses(404))
def delete_webhook_endpoint(webhook_endpoint_id: str, webhooks: Wired, owner: Owner) -> DeletedWebhookEndpoint:
    webhooks.endpoints.delete(owner, webhook_endpoint_id)
    return DeletedWebhookEndpoint(id=webhook_endpoint_id)


@router.post(
    "/webhook_endpoints/{webhook_endpoint_id}/rotate_secret",
    summary="A new signing secret; with the old one kept, both sign for 24 hours",
    responses=_BODY | responses(404),
    openapi_extra=described(Rotation, required=False),
)
def rotate_webhook_secret(
    webhook_endpoint_id: str,
    wanted: Annotated[Rotation, Depends(body_of(Rotation))],
    webhooks: Wired,
    owner: Owner,
) -> WebhookEndpointWithSecret:
    keep = wanted.keep_old_secret_active_for_24_hours
    return endpoint_with_secret(webhooks.endpoints.rotate(owner, webhook_endpoint_id, keep_old=keep))


@router.post(
    "/webhook_endpoints/{webhook_endpoint_id}/test",
    summary="Send a sample event now and say what the receiver answered",
    responses=_BODY | responses(404),
    openapi_extra=described(TestRequest),
)
def test_webhook_endpoint(
    webhook_endpoint_id: str,
    wanted: Annotated[TestRequest, Depends(body_of(TestRequest))],
    services: Services,
    webhooks: Wired,
    owner: Owner,
) -> WebhookEndpointTest:
    endpoint = webhooks.endpoints.get(owner, webhook_endpoint_id)
    job = sample_job(wanted.event_type, services.models.ids()[0])
    body = payload(new_id("evt"), wanted.event_type, job, Renderer(services.settings, services.storage)).encode()
    headers = signed_headers(endpoint.secrets, webhook_id=new_id("whd"), timestamp=int(time.time()), body=body)
    outcome = webhooks.sender.post(endpoint.url, body, headers)
    if outcome.status_code is None:
        raise WebhookTestFailed(f"The receiver gave no answer: {outcome.error}, after {outcome.duration_s:.1f} s.")
    return WebhookEndpointTest(
        webhook_endpoint_id=endpoint.id, event_type=wanted.event_type, status_code=outcome.status_code
    )


@router.get("/webhook_event_types", summary="What can be told")
def list_webhook_event_types(_owner: Owner) -> WebhookEventTypeList:
    return WebhookEventTypeList(data=list(EVENT_TYPES))


@router.get("/webhook_callback_secret", summary="The secret that signs what goes to a callback_url")
def retrieve_webhook_callback_secret(webhooks: Wired, owner: Owner) -> WebhookCallbackSecret:
    return WebhookCallbackSecret(signing_secret=webhooks.endpoints.callback_secrets(owner)[0].value)


@router.post(
    "/webhook_callback_secret/rotate_secret",
    summary="A new secret for callback_url; with the old one kept, both sign for 24 hours",
    responses=_BODY,
    openapi_extra=described(Rotation, required=False),
)
def rotate_webhook_callback_secret(
    wanted: Annotated[Rotation, Depends(body_of(Rotation))], webhooks: Wired, owner: Owner
) -> WebhookCallbackSecret:
    secrets = webhooks.endpoints.rotate_callback_secret(owner, keep_old=wanted.keep_old_secret_active_for_24_hours)
    return WebhookCallbackSecret(signing_secret=secrets[0].value)


@router.get("/webhook_deliveries", summary="Deliveries and their attempts, newest first", responses=responses(400))
def list_webhook_deliveries(
    webhooks: Wired,
    owner: Owner,
    video_id: Annotated[str | None, Query(max_length=64, description="only those of this video")] = None,
    limit: Limit = 20,
    after: After = None,
) -> WebhookDeliveryList:
    deliveries, has_more = webhooks.deliveries.list(owner, video_id=video_id, limit=limit, after=after)
    return WebhookDeliveryList(
        data=[delivery_answer(delivery) for delivery in deliveries],
        **_page([delivery.id for delivery in deliveries]),
        has_more=has_more and bool(deliveries),
    )


@router.get("/webhook_deliveries/{webhook_delivery_id}", summary="One delivery", responses=responses(404))
def retrieve_webhook_delivery(webhook_delivery_id: str, webhooks: Wired, owner: Owner) -> WebhookDelivery:
    return delivery_answer(webhooks.deliveries.get(owner, webhook_delivery_id))


@router.post(
    "/webhook_deliveries/{webhook_delivery_id}/redeliver",
    summary="Deliver again, now, under the same webhook-id",
    responses=responses(404),
)
def redeliver_webhook(webhook_delivery_id: str, webhooks: Wired, owner: Owner) -> WebhookDelivery:
    return delivery_answer(webhooks.deliveries.redeliver(owner, webhook_delivery_id))


_RECEIVER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Taken, as with any 2xx. Everything else is tried again for about three days; redirects are not "
        "followed, and what the answer says is not read."
    },
    410: {"description": "Send nothing more: the endpoint is disabled."},
}
_HEADERS = {
    "webhook-id": "the delivery; the same on every attempt",
    "webhook-timestamp": "unix seconds of this attempt",
    "webhook-signature": "v1,base64(HMAC-SHA256(secret, id.timestamp.body)); after a rotation several, by spaces",
}
_SENT = {
    "parameters": [
        {"name": name, "in": "header", "required": True, "schema": {"type": "string"}, "description": text}
        for name, text in _HEADERS.items()
    ]
}


@events.post("video.completed", summary="A video is ready", responses=_RECEIVER, openapi_extra=_SENT)
def video_completed(event: WebhookEvent) -> None: ...


@events.post("video.failed", summary="A video has failed or was cancelled", responses=_RECEIVER, openapi_extra=_SENT)
def video_failed(event: WebhookEvent) -> None: ...


def _page(ids: list[str]) -> dict[str, Any]:
    return {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
