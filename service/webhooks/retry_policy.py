"""What follows from an attempt: delivered, tried again later, or given up. A table and a clock that are passed in."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from service.webhooks.sender import Outcome

JITTER = 0.2  # a delay is lengthened by up to this part of it, so that what failed together is not repeated together
MAX_RETRY_AFTER_S = 86_400.0
HONOURED = (429, 502, 503, 504)  # whose Retry-After counts
GONE = 410  # Standard Webhooks: the receiver wants nothing any more


class State(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True)
class Next:
    """`at` is unix seconds, for a delivery that is still pending."""

    state: State
    at: float | None = None
    disable: bool = False


def after(
    outcome: Outcome,
    tried: int,
    *,
    delays_s: Sequence[float],
    now: float,
    chance: Callable[[], float] = random.random,
) -> Next:
    """`tried` counts this attempt too; delays_s[0] lies between the first and the second one."""
    if outcome.is_delivered:
        return Next(State.DELIVERED)
    if outcome.status_code == GONE:
        return Next(State.FAILED, disable=True)
    if tried > len(delays_s):
        return Next(State.FAILED)
    delay = delays_s[tried - 1] * (1 + JITTER * chance())
    if outcome.status_code in HONOURED and outcome.retry_after_s is not None:
        delay = max(delay, min(outcome.retry_after_s, MAX_RETRY_AFTER_S))
    return Next(State.PENDING, now + delay)
