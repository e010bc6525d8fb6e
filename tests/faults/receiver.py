"""Where the webhooks go: a server that answers as it is told to, and notes what it was told."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from tests.faults.history import History
from tests.receivers import Received

Mood = Literal["up", "down", "slow", "gone"]
ANSWERS: dict[str, int] = {"up": 204, "slow": 204, "gone": 410, "down": 0}


class Receiver:
    """A context. `secret` is to be set before the first webhook; `slow_s` is longer than senders wait."""

    def __init__(self, history: History, *, slow_s: float) -> None:
        self.mood: Mood = "up"
        self.secret = ""
        self._history, self._slow_s = history, slow_s
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer._take(self, {name.lower(): value for name, value in self.headers.items()}, body)

            def log_message(self, *_: Any) -> None: ...

        self._server = _Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _take(self, handler: BaseHTTPRequestHandler, headers: dict[str, str], body: bytes) -> None:
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


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that hangs up on us, or we on it, is the purpose."""
