"""Where the webhooks go: a server that answers as it is told to, and notes what it was told."""

from __future__ import annotations

import socket
import time
from http.server import BaseHTTPRequestHandler
from typing import Literal

from tests.faults.history import History
from tests.webhook_receivers import PostServer, Received

Mood = Literal["up", "down", "slow", "gone"]
ANSWERS: dict[str, int] = {"up": 204, "slow": 204, "gone": 410, "down": 0}


class Receiver(PostServer):
    """A context. `secret` is to be set before the first webhook; `slow_s` is longer than senders wait."""

    def __init__(self, history: History, *, slow_s: float) -> None:
        self.mood: Mood = "up"
        self.secret = ""
        self._history, self._slow_s = history, slow_s
        super().__init__()

    def handle(self, handler: BaseHTTPRequestHandler, headers: dict[str, str], body: bytes) -> None:
        mood = self.mood
        try:
            event, is_signed = Received("/", headers, body, None).event(self.secret), True
            told = {"id": event.data.id, "type": event.type}
        except Exception as e:  # whatever a wrong signature or body is called
            told, is_signed = {"error": type(e).__name__}, False
        answer = {"webhook_id": headers.get("webhook-id"), "signed": is_signed, "answer": ANSWERS[mood], **told}
        if mood == "slow":
            time.sleep(self._slow_s)
            answer["answer"] = 0  # nobody listened any more
        self._history.note("receiver", "webhook", **answer)
        if mood == "down":
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        handler.send_response(ANSWERS[mood])
        handler.send_header("content-length", "0")
        handler.end_headers()
