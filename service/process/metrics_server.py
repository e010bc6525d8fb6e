"""Serves /metrics for processes that have no HTTP API."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, start_http_server

from service.errors import ConfigurationError


def serve_metrics(registry: CollectorRegistry, host: str, port: int, setting: str) -> int:
    """Start a server in a background thread and return its port. Raises ConfigurationError if the port is in use."""
    try:
        server, _ = start_http_server(port, addr=host, registry=registry)
    except OSError as e:
        raise ConfigurationError(f"IVMIX_{setting}={port} on {host}: {e.strerror}; use another port") from e
    return server.server_port
