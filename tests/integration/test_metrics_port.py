"""The metrics port of workers and dispatchers: half requests do not stop it, and end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from socket import create_connection

import httpx2
import pytest
from prometheus_client import CollectorRegistry, Counter

from service.process import metrics_server
from service.process.metrics_server import MAX_CONNECTIONS, serve_metrics
from tests.api_process import is_closed_within

HALF = [b"", b"GET /met", b"GET /metrics HTTP/1.1\r\nhost: x\r\n"]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    registry = CollectorRegistry()
    Counter("shown", "Something to read", registry=registry).inc()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics_server, "TIMEOUT_S", 1.0)
        yield serve_metrics(registry, "127.0.0.1", 0, "WORKER_METRICS_PORT")


def scrape(port: int) -> str:
    return httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=20, trust_env=False).text


def test_half_requests_do_not_stop_it_and_end(port: int) -> None:
    threads = threading.active_count()
    with ExitStack() as stack:
        connections = [stack.enter_context(create_connection(("127.0.0.1", port))) for _ in range(200)]
        for i, connection in enumerate(connections):
            with suppress(ConnectionError):  # already closed for a newer one
                connection.sendall(HALF[i % len(HALF)])
        assert "shown_total 1.0" in scrape(port)
        assert threading.active_count() - threads <= MAX_CONNECTIONS + 1
        assert all(is_closed_within(connection, 20) for connection in connections)
    assert "shown_total 1.0" in scrape(port)
