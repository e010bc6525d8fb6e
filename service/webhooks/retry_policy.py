"""What follows from an attempt: delivered, retried later, or failed. Pure: clock and randomness are parameters."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from service.webhooks.sender import Outcome

JITTER = 0.2  # a delay grows by up to this fraction, so that deliveries that failed together are not retried together
MAX_RETRY_AFTER_S = 86_400.0
RETRY_AFTER_STATUSES = (429, 502, 503, 504)
GONE = 410  # Standard Webhooks: the receiver wants no further events


class State(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True)
class NextState:
    """`attempt_at` is unix seconds; set only while the delivery is pending."""

    state: State
    attempt_at: float | None = None
    disable_endpoint: bool = False


def next_state(
    outcome: Outcome,
    attempt_number: int,
    *,
    delays_s: Sequence[float],
    now: float,
    rng: Callable[[], float] = random.random,
) -> NextState:
    """The state after attempt `attempt_number`, counted from 1.

    Args:
        delays_s: delays_s[0] is the delay between the first attempt and the second.
        now: unix seconds.
        rng: returns a number between 0 and 1, the fraction of JITTER to apply.
    """
    if outcome.is_delivered:
        return NextState(State.DELIVERED)
    if outcome.status_code == GONE:
        return NextState(State.FAILED, disable_endpoint=True)
    if attempt_number > len(delays_s):
        return NextState(State.FAILED)
    delay = delays_s[attempt_number - 1] * (1 + JITTER * rng())
    if outcome.status_code in RETRY_AFTER_STATUSES and outcome.retry_after_s is not None:
        delay = max(delay, min(outcome.retry_after_s, MAX_RETRY_AFTER_S))
    return NextState(State.PENDING, now + delay)
