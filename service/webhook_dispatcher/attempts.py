"""One attempt at one delivery, and what follows from it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.webhook_dispatcher.metrics import DispatcherMetrics
from service.webhooks.deliveries import Delivery, DeliveryStore
from service.webhooks.endpoints import EndpointStore
from service.webhooks.retry_policy import State, after
from service.webhooks.sender import Sender
from service.webhooks.signature import Secrets, signed_headers

log = logging.getLogger("ivmix.webhooks")


class NoAttempt(Exception):
    """There is nothing to be made any more; the message goes into the delivery log."""


@dataclass(frozen=True)
class Attempts:
    """`share`: how many attempts may be under way at one host, so that a slow one cannot hold all workers."""

    endpoints: EndpointStore
    deliveries: DeliveryStore
    sender: Sender
    delays_s: Sequence[float]
    timeout_s: float
    share: int
    metrics: DispatcherMetrics = field(default_factory=DispatcherMetrics)

    def make(self, delivery_id: str, number: int) -> None:
        """Make attempt `number`, counted from 0, unless it has been made or is being made."""
        delivery = self.deliveries.find(delivery_id)
        if delivery is None or delivery.attempts != number:
            return
        tried = number + 1 - delivery.started_with
        try:
            url, secrets = self._receiver(delivery)
            if tried > len(self.delays_s) + 1:
                raise NoAttempt("attempts_lost")  # whoever made the last one never came back
        except NoAttempt as e:
            if self.deliveries.give_up(delivery, str(e)):
                self.metrics.end(State.FAILED)
            return
        if not self.deliveries.take(delivery, url, timeout_s=self.timeout_s, share=self.share):
            return
        body = delivery.body.encode()
        headers = signed_headers(secrets, webhook_id=delivery.id, timestamp=int(time.time()), body=body)
        outcome = self.sender.post(url, body, headers)
        self.metrics.attempt(outcome)
        then = after(outcome, tried, delays_s=self.delays_s, now=time.time())
        if then.disable and delivery.endpoint_id:
            self.endpoints.disable(delivery.endpoint_id)
        if self.deliveries.finish(delivery, url, outcome, then):
            self.metrics.end(then.state)
        log.info(
            "%s for %s, attempt %d: %s %s in %.1f s, now %s",
            *(delivery.id, delivery.video_id, number + 1),
            *(outcome.status_code, outcome.error or "delivered", outcome.duration_s, then.state),
        )

    def _receiver(self, delivery: Delivery) -> tuple[str, Secrets]:
        """URL and secrets as they are now: whoever corrects an endpoint wants what is pending to go there."""
        if delivery.url is not None:
            return delivery.url, self.endpoints.default_secrets(delivery.owner)
        endpoint = self.endpoints.find(delivery.endpoint_id or "")
        if endpoint is None:
            raise NoAttempt("endpoint_deleted")
        if not endpoint.is_enabled:
            raise NoAttempt("endpoint_disabled")
        return endpoint.url, endpoint.secrets
