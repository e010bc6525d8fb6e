"""Warnings of libraries that any client can cause fill no log."""

from __future__ import annotations

import logging

from service.log_config import MAX_REMEMBERED, OncePerMinute


def passed(limited: OncePerMinute, message: str, at: float, *, level: int = logging.WARNING) -> str | None:
    record = logging.LogRecord("uvicorn.error", level, "", 0, message, (), None)
    record.created = at
    return record.getMessage() if limited.filter(record) else None


def test_a_warning_is_repeated_after_a_minute_with_the_number_left_out() -> None:
    limited = OncePerMinute()
    lines = [passed(limited, "Invalid HTTP request received.", at) for at in (0, 1, 59, 61)]
    assert lines[:3] == ["Invalid HTTP request received.", None, None]
    assert lines[3] is not None
    assert "2 more" in lines[3]


def test_other_messages_and_lower_levels_pass() -> None:
    limited = OncePerMinute()
    assert passed(limited, "a", 0)
    assert passed(limited, "b", 0)
    assert [passed(limited, "started", at, level=logging.INFO) for at in (0, 0)] == ["started"] * 2


def test_it_remembers_a_bounded_number_of_messages() -> None:
    limited = OncePerMinute()
    assert all(passed(limited, f"message {i}", 0) for i in range(3 * MAX_REMEMBERED))
    assert len(limited._seen) <= MAX_REMEMBERED
