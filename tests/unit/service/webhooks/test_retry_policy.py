from __future__ import annotations

import pytest

from service.settings import Settings
from service.webhooks.retry_policy import JITTER, NextState, State, next_state
from service.webhooks.sender import Outcome

NOW = 1_800_000_000.0
DELAYS = (5.0, 300.0)


def outcome(status: int | None, error: str | None = "bad_status", retry_after_s: float | None = None) -> Outcome:
    return Outcome(status, error, 0.1, retry_after_s)


def following(result: Outcome, attempt_number: int, fraction: float = 0.0) -> NextState:
    return next_state(result, attempt_number, delays_s=DELAYS, now=NOW, rng=lambda: fraction)


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_any_2xx_means_delivered(status: int) -> None:
    assert following(outcome(status, None), 1) == NextState(State.DELIVERED)


@pytest.mark.parametrize("status", [301, 302, 400, 401, 404, 408, 418, 429, 500, 503])
def test_every_other_status_is_retried(status: int) -> None:
    assert following(outcome(status), 1) == NextState(State.PENDING, NOW + 5)


@pytest.mark.parametrize("error", ["timeout", "no_connection", "tls_failed", "name_not_resolved", "refused_url"])
def test_an_attempt_without_a_reply_is_retried(error: str) -> None:
    assert following(outcome(None, error), 2) == NextState(State.PENDING, NOW + 300)


def test_a_2xx_whose_reply_never_ends_is_not_delivered() -> None:
    assert following(outcome(200, "reply_too_large"), 1).state is State.PENDING


def test_after_the_last_delay_it_has_failed() -> None:
    assert following(outcome(500), 3) == NextState(State.FAILED)


def test_410_ends_it_and_disables_the_endpoint() -> None:
    assert following(outcome(410), 1) == NextState(State.FAILED, disable_endpoint=True)


@pytest.mark.parametrize(("fraction", "delay"), [(0.0, 300.0), (0.5, 330.0), (1.0, 360.0)])
def test_jitter_lengthens_a_delay_by_up_to_a_fifth(fraction: float, delay: float) -> None:
    assert following(outcome(500), 2, fraction).attempt_at == pytest.approx(NOW + delay)


def test_deliveries_that_failed_together_are_not_retried_together() -> None:
    times = {round(next_state(outcome(500), 2, delays_s=DELAYS, now=NOW).attempt_at or 0) for _ in range(200)}
    assert len(times) > 20
    assert all(NOW + 300 <= time <= NOW + 300 * (1 + JITTER) for time in times)


@pytest.mark.parametrize(
    ("status", "retry_after", "delay"),
    [(429, 60, 60), (502, 60, 60), (503, 60, 60), (504, 60, 60), (503, 1, 5), (503, 10**7, 86_400), (500, 60, 5)],
)
def test_retry_after_is_honoured_where_it_means_something_and_within_a_day(
    status: int, retry_after: float, delay: float
) -> None:
    assert following(outcome(status, retry_after_s=retry_after), 1).attempt_at == NOW + delay


def test_the_default_schedule_lasts_about_three_days() -> None:
    delays = Settings.model_fields["webhook_retry_delays_s"].default
    shortest = sum(delays)
    assert len(delays) + 1 == 10
    assert 3 * 86_400 <= shortest <= shortest * (1 + JITTER) <= 4 * 86_400
    assert list(delays) == sorted(delays)
