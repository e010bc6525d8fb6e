"""POST /v1/webhook_endpoints/{id}/test: the webhook dispatcher sends a sample event, this request waits for the result.

The API process itself sends nothing: a silent receiver must not hold its threads.
"""

from __future__ import annotations

import time
from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, Request
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from service.api.auth import ServicesDep, WebhookOwner, get_webhook_owner
from service.api.json_body import read_json_body
from service.api.open_requests import OpenRequests
from service.api.openapi.responses import errors, json_body, success
from service.api.webhook_schemas import TestEndpointRequest, WebhookEndpointTest
from service.errors import WebhookTestFailed
from service.ids import new_id
from service.jobs.model import EventType
from service.webhooks.deliveries import Delivery, new_delivery
from service.webhooks.endpoints import Endpoint
from service.wire.video import Renderer
from service.wire.webhook import payload, sample_job
from service.wiring import Services

POLL_INTERVAL_S = 0.2
PICKUP_S = 15.0  # for a dispatcher to begin; the attempt itself takes at most IVMIX_WEBHOOK_TIMEOUT_S

router = APIRouter(prefix="/v1", tags=["webhooks"])


@router.post(
    "/webhook_endpoints/{webhook_endpoint_id}/test",
    summary="Send a test event",
    description="Sends one sample event and returns the status of the receiver's response. It is not retried, and is "
    "listed as a delivery. Test events and redeliveries are limited per minute.",
    responses=success("WebhookEndpointTest") | errors(400, 404, 413, 415, 429),
    openapi_extra=json_body(TestEndpointRequest, "TestWebhookEndpoint"),
)
async def test_webhook_endpoint(
    request: Request,
    webhook_endpoint_id: str,
    owner: WebhookOwner,
    body: Annotated[TestEndpointRequest, Depends(read_json_body(TestEndpointRequest))],
    services: ServicesDep,
) -> WebhookEndpointTest:
    endpoint = await run_in_threadpool(services.webhooks.endpoints.get, owner, webhook_endpoint_id)
    open_requests: OpenRequests = request.app.state.open_requests
    async with open_requests.slot(request, owner):
        await run_in_threadpool(request.app.state.rate_limiter.check_webhook, owner, endpoint.url)
        delivery = await run_in_threadpool(_create, services, endpoint, body.event_type)
        delivery = await _wait(request, services, delivery)
    return _result(endpoint, delivery)


def _create(services: Services, endpoint: Endpoint, event_type: EventType) -> Delivery:
    job, event_id = sample_job(event_type, services.models.ids()[0]), new_id("evt")
    delivery = new_delivery(
        event_id=event_id,
        event_type=event_type,
        video_id=job.id,
        owner=endpoint.owner,
        endpoint_id=endpoint.id,
        body=payload(event_id, event_type, job, Renderer(services.settings, services.storage)),
        is_test=True,
    )
    services.webhooks.deliveries.create(delivery)
    return delivery


async def _wait(request: Request, services: Services, delivery: Delivery) -> Delivery:
    """The delivery after its attempt, or as it is when the time is over, the client is gone or the server stops."""
    deadline = time.monotonic() + services.settings.webhook_timeout_s + PICKUP_S
    stopping = request.app.state.open_requests.stopping
    while delivery.ended_at is None and time.monotonic() < deadline and not stopping.is_set():
        if await request.is_disconnected():
            break
        await anyio.sleep(POLL_INTERVAL_S)
        try:
            await get_webhook_owner(request)  # raises if the key has been revoked or has lost its scope
            found = await run_in_threadpool(services.webhooks.deliveries.find, delivery.id)
        except RedisError:  # try again until the deadline
            continue
        if found is None:  # trimmed: its owner has too many
            break
        delivery = found
    return delivery


def _result(endpoint: Endpoint, delivery: Delivery) -> WebhookEndpointTest:
    """Raises WebhookTestFailed if there is no response."""
    if delivery.ended_at is None:
        message = (
            f"The test event has not been sent yet; is a webhook dispatcher running? Its result will be at "
            f"/v1/webhook_deliveries/{delivery.id}."
        )
        raise WebhookTestFailed(message)
    attempt = delivery.log[-1] if delivery.log else None
    if attempt is None or attempt.status_code is None:
        after = f" after {attempt.duration_s:.1f} s" if attempt else ""
        raise WebhookTestFailed(f"No response from the receiver: {delivery.error}{after} ({delivery.id}).")
    return WebhookEndpointTest(
        webhook_endpoint_id=endpoint.id,
        event_type=delivery.event_type,
        status_code=attempt.status_code,
        webhook_delivery_id=delivery.id,
    )
