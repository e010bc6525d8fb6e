"""Faults that come from clients: a key that is revoked, and a tenant that floods the API."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import httpx2

from service.api_keys import CACHE_S
from tests.faults.cluster import CLIENTS, Cluster
from tests.faults.injection import SHORT_S, Injection

HALF_REQUESTS, WEBHOOK_TESTS, POLLERS, INVENTED_METHODS = 60, 8, 3, 30
FLOODER = "flooder"


def revoke_key(injection: Injection) -> Iterator[float]:
    """A client changes to a new key and its old one is revoked; its videos go on."""
    cluster = injection.cluster
    name = injection.random.choice([client for client in CLIENTS if client != FLOODER])
    injection.record(target=name)
    revoked = cluster.replace_key(name)
    yield CACHE_S + 1.0
    with suppress(httpx2.HTTPError):  # another fault may have stopped the API
        response = httpx2.get(f"{cluster.url}/v1/videos", headers=_authorization(revoked), timeout=5, trust_env=False)
        injection.record(old_key_answer=response.status_code)


def flood(injection: Injection) -> Iterator[float]:
    """Half-sent requests, invented methods, polls without a pause, and webhook tests to a receiver that is silent."""
    cluster, stopping = injection.cluster, threading.Event()
    with ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        threads = [threading.Thread(target=_poll, args=(cluster, stopping), daemon=True) for _ in range(POLLERS)]
        endpoint = _create_endpoint(cluster, silent.getsockname()[1])
        threads += [
            threading.Thread(target=_test_webhook, args=(cluster, endpoint), daemon=True) for _ in range(WEBHOOK_TESTS)
        ]
        for i in range(HALF_REQUESTS):
            with suppress(OSError):
                stack.enter_context(_send_half_a_request(cluster, f"INVENTED{i}" if i < INVENTED_METHODS else "GET"))
        for thread in threads:
            thread.start()
        yield 2 * SHORT_S
        stopping.set()
    for thread in threads:
        thread.join(30)
    if endpoint is not None:
        _call(cluster, "DELETE", f"/v1/webhook_endpoints/{endpoint}")


def _poll(cluster: Cluster, stopping: threading.Event) -> None:
    while not stopping.is_set():
        _call(cluster, "GET", "/v1/videos?limit=100")


def _create_endpoint(cluster: Cluster, port: int) -> str | None:
    found = _call(cluster, "POST", "/v1/webhook_endpoints", {"url": f"http://127.0.0.1:{port}/"})
    return found.get("id")


def _test_webhook(cluster: Cluster, endpoint: str | None) -> None:
    _call(cluster, "POST", f"/v1/webhook_endpoints/{endpoint}/test")


def _send_half_a_request(cluster: Cluster, method: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", cluster.api_port), timeout=2)
    end = "\r\n" if method != "GET" else ""
    connection.sendall(f"{method} /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: {end}{end}".encode())
    return connection


def _call(cluster: Cluster, method: str, path: str, body: Any = None) -> dict[str, Any]:
    headers = _authorization(cluster.api_keys[FLOODER])
    try:
        response = httpx2.request(method, cluster.url + path, headers=headers, json=body, timeout=20, trust_env=False)
        return response.json()
    except (httpx2.HTTPError, ValueError):  # refused, or the API was killed
        return {}


def _authorization(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}
