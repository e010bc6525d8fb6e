"""Serves /metrics for processes that have no HTTP API."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, start_http_server

from service.errors import ConfigurationError
from service.process.ports import bind_port


def serve_metrics(registry: CollectorRegistry, host: str, port: int, setting: str) -> int:
    """Start a server in a background thread and return its port. Raises ConfigurationError if it cannot be used."""
    for s in bind_port(host, port, f"IVMIX_{setting}"):  # explains what is wrong
        s.close()
    try:
        server, _ = start_http_server(port, addr=host, registry=registry)
    except OSError as e:
        raise ConfigurationError(f"IVMIX_{setting}={port} on {host}: {e.strerror}; choose another port") from e
    return server.server_port
