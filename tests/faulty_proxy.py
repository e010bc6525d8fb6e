"""An HTTP proxy that injects faults in front of a real server."""

from __future__ import annotations

import http.client
import socket
import threading
from collections import deque
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Fault = Literal["drop", "503", "hang", "cut", "flip", "late"]
UPSTREAM_TIMEOUT_S = 60


@dataclass
class FaultyProxy:
    """A context. Each request of `method` takes the next of `faults`; without one it is forwarded unchanged.

    Faults: "drop" closes the connection, "503" refuses, "hang" never answers, "cut" forwards half of the body, "flip"
    corrupts one bit of the body, "late" forwards the request and drops the response.
    """

    target: str
    method: str = "PUT"
    faults: deque[Fault] = field(default_factory=deque[Fault])
    seen: list[str] = field(default_factory=list[str])  # "PUT /bucket/key", in the order of arrival
    _released: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultyProxy:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def next_fault(self, method: str) -> Fault | None:
        return self.faults.popleft() if method == self.method and self.faults else None

    def wait_for_release(self) -> None:
        self._released.wait()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = UPSTREAM_TIMEOUT_S

    def __init__(self, proxy: FaultyProxy, *connection: Any) -> None:
        self.proxy = proxy
        super().__init__(*connection)  # handles all requests of the connection

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client or a fault closed the connection
            self.close_connection = True

    def do_GET(self) -> None:
        self.proxy.seen.append(f"{self.command} {urlsplit(self.path).path}")
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        fault = self.proxy.next_fault(self.command)
        if fault in ("drop", "503", "hang"):
            self.close_connection = True
            self._end(fault)
        elif answer := self._ask(body, fault):
            self._answer(*answer)
        else:
            self.close_connection = True

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET  # noqa: N815  # the names the library calls

    def _end(self, fault: Fault) -> None:
        """Respond without asking the server, or not at all."""
        if fault == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "hang":
            self.proxy.wait_for_release()
        else:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _ask(self, body: bytes, fault: Fault | None) -> tuple[http.client.HTTPResponse, bytes] | None:
        """The server's response and its content; None if the client gets none."""
        upstream = urlsplit(self.proxy.target)
        connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=UPSTREAM_TIMEOUT_S)
        with closing(connection):
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders()
            if fault == "cut":
                connection.send(body[: len(body) // 2])
                return None
            if body:
                connection.send(_flipped(body) if fault == "flip" else body)
            answer = connection.getresponse()
            content = answer.read()
            return None if fault == "late" else (answer, content)

    def _answer(self, answer: http.client.HTTPResponse, content: bytes) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("content-length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None: ...


def _flipped(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
