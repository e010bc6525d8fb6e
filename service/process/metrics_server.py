"""Serves /metrics for processes that have no HTTP API.

Bounded, because prometheus_client's own server gives every connection a thread for as long as its client likes.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import (
    CollectorRegistry,
    make_wsgi_app,  # pyright: ignore[reportUnknownVariableType]
)

from service.errors import ConfigurationError
from service.process.ports import bind_port

MAX_CONNECTIONS = 16  # beyond that, the oldest one is closed
TIMEOUT_S = 15.0  # for a whole exchange; Prometheus scrapes within 10 seconds by default


def serve_metrics(registry: CollectorRegistry, host: str, port: int, setting: str) -> int:
    """Start a server in a background thread and return its port. Raises ConfigurationError if it cannot be used."""
    for s in bind_port(host, port, f"IVMIX_{setting}"):  # explains what is wrong
        s.close()
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        server = MetricsServer(family, (str(address[0]), port))
    except OSError as e:
        raise ConfigurationError(f"IVMIX_{setting}={port} on {host}: {e.strerror}; choose another port") from e
    server.set_app(make_wsgi_app(registry))  # pyright: ignore[reportUnknownArgumentType]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


class MetricsServer(WSGIServer):
    """One thread per connection, and a limit on both."""

    request_queue_size = MAX_CONNECTIONS

    def __init__(self, family: int, address: tuple[str, int]) -> None:
        self.address_family = family
        self._open: dict[socket.socket, float] = {}  # with the time of each; the oldest is the first
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = time.monotonic()
            if len(self._open) > MAX_CONNECTIONS:
                self._close_oldest()
        threading.Thread(target=self._serve, args=(request, client_address), daemon=True).start()

    def service_actions(self) -> None:
        """Called twice per second."""
        with self._lock:
            while self._open and next(iter(self._open.values())) < time.monotonic() - TIMEOUT_S:
                self._close_oldest()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: any client can send what is not HTTP, or leave early."""

    def _serve(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            self.handle_error(request, client_address)
        finally:
            with self._lock:
                self._open.pop(request, None)
            self.shutdown_request(request)

    def _close_oldest(self) -> None:
        """Its thread, which waits for the client, ends with that."""
        request = next(iter(self._open))
        del self._open[request]
        with suppress(OSError):  # the client has left
            request.shutdown(socket.SHUT_RDWR)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: Prometheus scrapes every few seconds."""
