"""Why new jobs are refused: the answers of the script that creates jobs, as errors."""

from __future__ import annotations

from typing import NoReturn

from service.errors import IdempotencyKeyReused, QueueFull, QuotaExceeded

QUEUE_FULL_RETRY_S = 30  # about the time of one video; the OpenAI SDKs ignore a Retry-After above 120 s


def refuse(answer: str, detail: str, count: int, gpu_seconds_per_day: int | None) -> NoReturn:
    """
    Args:
        detail: the limit, or for a quota the GPU time used and expected in ms and the seconds until the day ends.
        count: how many jobs were to be created.
    """
    if answer == "reused":
        raise IdempotencyKeyReused
    if answer == "quota":
        used_ms, expected_ms, reset_s = map(int, detail.split())
        raise QuotaExceeded(gpu_seconds_per_day or 0, used_ms, expected_ms, reset_s)
    whose = {"queue_full": "the server", "owner_full": "this API key"}[answer]
    how_many = (
        f"{detail} videos are waiting" if count == 1 else f"with {count} more, more than {detail} videos would wait"
    )
    raise QueueFull(f"Queue is full: {how_many}, the limit of {whose}; try again later.", QUEUE_FULL_RETRY_S)
