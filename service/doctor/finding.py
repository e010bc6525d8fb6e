"""What a check has found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    OK = "ok"
    WARNING = "warning"  # it works, but not as well or as safely as it should
    PROBLEM = "problem"  # something does not work, or loses data


@dataclass(frozen=True)
class Finding:
    """
    Attributes:
        check: what was checked, a word or two.
        message: what was found, one sentence without secrets.
        advice: what to do; empty if the message says it, or nothing is to be done.
    """

    check: str
    severity: Severity
    message: str
    advice: str = ""


Findings = Iterator[Finding]


def ok(check: str, message: str) -> Finding:
    return Finding(check, Severity.OK, message)


def warning(check: str, message: str, advice: str = "") -> Finding:
    return Finding(check, Severity.WARNING, message, advice)


def problem(check: str, message: str, advice: str = "") -> Finding:
    return Finding(check, Severity.PROBLEM, message, advice)
