"""What RQ calls by name. `install` is told once, at start, who does the work."""

from __future__ import annotations

from service.webhook_dispatcher.attempts import Attempts

_installed: Attempts | None = None


def install(attempts: Attempts) -> None:
    global _installed
    _installed = attempts


def deliver(delivery_id: str, number: int) -> None:
    if _installed is None:
        raise RuntimeError("service.webhook_dispatcher.tasks.deliver runs inside `ivmix webhooks` only")
    _installed.make(delivery_id, number)
