"""Prometheus metrics of one dispatcher. What waits is in Redis, so the API reports that."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

from service.webhooks.retry_policy import State
from service.webhooks.sender import Outcome

BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0)


class DispatcherMetrics:
    """Has its own registry: nothing is global. docs/ explains each metric, and a test compares the two."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._attempts = Counter("ivmix_webhook_attempts", "POSTs to receivers", ("outcome",), registry=self.registry)
        self._seconds = Histogram(
            "ivmix_webhook_attempt_seconds", "Time until the reply", buckets=BUCKETS_S, registry=self.registry
        )
        self._deliveries = Counter(
            "ivmix_webhook_deliveries", "Deliveries that have ended", ("result",), registry=self.registry
        )
        for state in (State.DELIVERED, State.FAILED):
            self._deliveries.labels(state)  # exported from the start: a rate needs the zero
        ProcessCollector(registry=self.registry)

    def attempt_made(self, outcome: Outcome) -> None:
        self._attempts.labels(outcome.error or "delivered").inc()
        self._seconds.observe(outcome.duration_s)

    def delivery_ended(self, state: State) -> None:
        """Counts nothing while the delivery is pending."""
        if state is not State.PENDING:
            self._deliveries.labels(state).inc()
