"""Serves /metrics for processes that have no HTTP API of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, start_http_server

from service.errors import ConfigurationError


def serve_metrics(registry: CollectorRegistry, host: str, port: int, setting: str) -> int:
    """In a thread of its own, for as long as the process lives; the port. Raises ConfigurationError if taken."""
    try:
        server, _ = start_http_server(port, addr=host, registry=registry)
    except OSError as e:
        raise ConfigurationError(f"IVMIX_{setting}={port} on {host}: {e.strerror}; use another") from e
    return server.server_port
