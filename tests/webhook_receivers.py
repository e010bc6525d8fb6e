"""Real HTTP servers that receive webhooks and respond as configured."""

from __future__ import annotations

import ssl
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from openai import OpenAI

from tests.processes import wait_for


class Received:
    def __init__(self, path: str, headers: dict[str, str], body: bytes, sni: str | None) -> None:
        self.path = path
        self.headers = headers
        self.body = body
        self.sni = sni

    def event(self, secret: str) -> Any:
        """Raises InvalidWebhookSignatureError if this secret did not sign it."""
        return OpenAI(api_key="unused").webhooks.unwrap(self.body, self.headers, secret=secret)


Respond = Callable[[BaseHTTPRequestHandler], None]


def status(code: int, **headers: str) -> Respond:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("content-length", "0")
        handler.end_headers()

    return answer


def raw(*pieces: bytes, pause_s: float = 0.0) -> Respond:
    """Send raw bytes, with a pause after each piece, until the client closes the connection."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        try:
            for piece in pieces:
                handler.wfile.write(piece)
                handler.wfile.flush()
                time.sleep(pause_s)
        except OSError:
            pass

    return answer


class PostServer(ABC):
    """A context: a server on a free port of 127.0.0.1 that passes every POST to `take`. `url` has no path."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.take(self, {name.lower(): value for name, value in self.headers.items()}, body)

            def log_message(self, *_: Any) -> None: ...

        self._server = _Quiet(("127.0.0.1", 0), Handler)
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @abstractmethod
    def take(self, handler: BaseHTTPRequestHandler, headers: dict[str, str], body: bytes) -> None:
        """Respond to a request. Header names are in lower case."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Receiver(PostServer):
    """Responds with each of `answers` in order, then repeats the last one."""

    def __init__(self, *answers: Respond, tls: ssl.SSLContext | None = None) -> None:
        self.answers = list(answers) or [status(204)]
        self.received: list[Received] = []
        self._sni: str | None = None
        super().__init__(tls=tls)
        if tls:
            tls.sni_callback = self._note_name

    def take(self, handler: BaseHTTPRequestHandler, headers: dict[str, str], body: bytes) -> None:
        self.received.append(Received(handler.path, headers, body, self._sni))
        self.answers[min(len(self.received), len(self.answers)) - 1](handler)

    def wait(self, count: int = 1, timeout_s: float = 150) -> list[Received]:
        wait_for(lambda: len(self.received) >= count or None, timeout_s=timeout_s, hint=f"of {count} webhooks")
        return self.received

    def _note_name(self, _socket: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        self._sni = name


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: some tests make the sender close the connection."""
