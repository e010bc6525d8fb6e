"""One attempt at one delivery, and what follows from its outcome."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from service.settings import Settings
from service.tracing import NO_TRACING, Tracing
from service.webhook_dispatcher.metrics import DispatcherMetrics
from service.webhooks.deliveries import Delivery
from service.webhooks.retry_policy import State, next_state
from service.webhooks.signature import Secrets, signed_headers
from service.webhooks.url_policy import host_of
from service.wiring import Webhooks

log = logging.getLogger("ivmix.webhooks")


class NotDeliverable(Exception):
    """No further attempt can be made; the message is stored as the delivery's error."""


@dataclass(frozen=True)
class AttemptRunner:
    settings: Settings
    webhooks: Webhooks
    metrics: DispatcherMetrics
    tracing: Tracing = NO_TRACING

    @property
    def per_host_limit(self) -> int:
        """Concurrent attempts of one owner to one host, so that a slow host does not delay the owner's others."""
        return max(1, self.settings.webhook_concurrency // 4)

    def run(self, delivery_id: str, attempts_made: int) -> None:
        """Make the next attempt, unless another dispatcher has made one since `attempts_made` was read."""
        deliveries = self.webhooks.deliveries
        delivery = deliveries.find(delivery_id)
        if delivery is None or delivery.attempts != attempts_made:
            return
        attempt_number = attempts_made + 1 - delivery.started_with
        try:
            url, secrets = self._destination(delivery)
            if attempt_number > len(self._retry_delays_s(delivery)) + 1:
                raise NotDeliverable("attempts_lost")  # the process that made the last attempt never recorded it
        except NotDeliverable as e:
            if deliveries.fail(delivery, str(e)):
                self.metrics.delivery_ended(State.FAILED)
            return
        timeout_s = self.settings.webhook_timeout_s
        if deliveries.start_attempt(delivery, url, timeout_s=timeout_s, per_host_limit=self.per_host_limit):
            self._post(delivery, url, secrets, attempt_number)

    def _retry_delays_s(self, delivery: Delivery) -> tuple[float, ...]:
        return () if delivery.is_test else self.settings.webhook_retry_delays_s

    def _destination(self, delivery: Delivery) -> tuple[str, Secrets]:
        """The endpoint's current URL and secrets, so that a corrected endpoint also gets its pending deliveries."""
        if delivery.url is not None:
            return delivery.url, self.webhooks.endpoints.callback_secrets(delivery.owner)
        endpoint = self.webhooks.endpoints.find(delivery.endpoint_id or "")
        if endpoint is None:
            raise NotDeliverable("endpoint_deleted")
        if not endpoint.is_enabled and not delivery.is_test:
            raise NotDeliverable("endpoint_disabled")
        return endpoint.url, endpoint.secrets

    def _post(self, delivery: Delivery, url: str, secrets: Secrets, attempt_number: int) -> None:
        body = delivery.body.encode()
        headers = signed_headers(secrets, webhook_id=delivery.id, timestamp=int(time.time()), body=body)
        about = {"ivmix.video_id": delivery.video_id, "ivmix.attempt": attempt_number, "server.address": host_of(url)}
        with self.tracing.span("webhook", parent=delivery.traceparent, kind="client", attributes=about) as span:
            if span.traceparent:
                headers = {**headers, "traceparent": span.traceparent}
            outcome = self.webhooks.sender.post(url, body, headers)
            span.set({"http.response.status_code": outcome.status_code or 0})
            if outcome.error:
                span.fail(outcome.error)
        self.metrics.attempt_made(outcome)
        delays_s = self._retry_delays_s(delivery)
        following = next_state(outcome, attempt_number, delays_s=delays_s, now=time.time())
        if following.disable_endpoint and delivery.endpoint_id and not delivery.is_test:
            self.webhooks.endpoints.disable(delivery.endpoint_id)
        if self.webhooks.deliveries.finish_attempt(delivery, url, outcome, following):
            self.metrics.delivery_ended(following.state)
        log.info(
            "%s for %s, attempt %d: status %s, %s, %.1f s; now %s",
            *(delivery.id, delivery.video_id, delivery.attempts + 1),
            *(outcome.status_code, outcome.error or "delivered", outcome.duration_s, following.state),
        )
