"""A webhook receiver that can be up, down, slow or gone, and records every delivery attempt."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal

from tests.faults.history import History
from tests.webhook_receivers import PostServer, Received

Mode = Literal["up", "down", "slow", "gone"]
STATUS: dict[Mode, int] = {"up": 204, "slow": 204, "gone": 410, "down": 0}


class Receiver(PostServer):
    """A context. Put the secrets of all owners into `secrets` before the first webhook arrives.

    Args:
        slow_s: Seconds before the answer in mode "slow"; longer than the senders' timeout.
    """

    def __init__(self, history: History, *, slow_s: float) -> None:
        self.mode: Mode = "up"
        self.secrets: list[str] = []
        self._history, self._slow_s = history, slow_s
        super().__init__()

    def take(self, handler: BaseHTTPRequestHandler, headers: dict[str, str], body: bytes) -> None:
        mode = self.mode
        try:
            event, is_signed = self._event(Received("/", headers, body, None)), True
            details = {"id": event.data.id, "type": event.type}
        except Exception as e:  # any error means that the signature or body is wrong
            details, is_signed = {"error": type(e).__name__}, False
        attempt = {"webhook_id": headers.get("webhook-id"), "signed": is_signed, "answer": STATUS[mode], **details}
        if mode == "slow":
            time.sleep(self._slow_s)
            attempt["answer"] = 0  # the sender has hung up by now
        self._history.record("receiver", "webhook", **attempt)
        if mode == "down":
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        handler.send_response(STATUS[mode])
        handler.send_header("content-length", "0")
        handler.end_headers()

    def _event(self, received: Received) -> Any:
        """Raises the last secret's error if none of them signed it."""
        for secret in self.secrets[:-1]:
            with suppress(Exception):
                return received.event(secret)
        return received.event(self.secrets[-1])
