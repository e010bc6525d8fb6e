"""One tenant floods the service; another one's polls stay quick, and its webhooks arrive.

API and dispatcher are separate processes. Each measurement is the best of three, because the machine may be busy.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Self

import httpx2
import pytest

from service.api_keys import KeyStore
from service.settings import Settings
from service.wiring import open_services
from tests.api_process import Api, api_process, is_closed_within
from tests.factories import PROMPT
from tests.processes import started
from tests.webhook_receivers import Receiver, raw

POLLS = 100
TIMEOUT_S = 3.0
LOCAL_RECEIVERS = {
    "IVMIX_WEBHOOK_ALLOW": "127.0.0.0/8",
    "IVMIX_WEBHOOK_ALLOW_HTTP": "true",
    "IVMIX_WEBHOOK_TIMEOUT_S": "30",  # no attempt at a silent receiver ends during a measurement
}


class Tenant:
    """An API key, and a connection that sends it."""

    def __init__(self, api: Api, keys: KeyStore) -> None:
        self.api = api
        self.secret = keys.create("test")[1]
        self.http = httpx2.Client(
            base_url=api.url, headers={"authorization": f"Bearer {self.secret}"}, timeout=60, trust_env=False
        )
        self.video_id = self.create()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def create(self, **body: str) -> str:
        answer = self.http.post("/v1/videos", json={"prompt": PROMPT} | body)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    def p99_of_polls(self) -> float:
        took: list[float] = []
        for _ in range(POLLS):
            began = time.perf_counter()
            assert self.http.get(f"/v1/videos/{self.video_id}").status_code == 200
            took.append(time.perf_counter() - began)
        return sorted(took)[int(0.99 * POLLS) - 1]

    def seconds_to_webhook(self, receiver: Receiver) -> float:
        video_id = self.create(callback_url=receiver.url)
        before, began = len(receiver.received), time.monotonic()
        self.http.post(f"/v1/videos/{video_id}/cancel")
        receiver.wait(before + 1, timeout_s=60)
        return time.monotonic() - began

    def add_endpoint(self, url: str) -> str:
        body = {"name": "x", "url": url, "event_types": ["video.failed"]}
        return self.http.post("/v1/webhook_endpoints", json=body).json()["id"]


@dataclass
class Service:
    api: Api
    keys: KeyStore
    flooder: Tenant
    other: Tenant
    quick: Receiver
    silent: list[Receiver]
    undisturbed_s: float = 0.0


@pytest.fixture(scope="module")
def service(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("floods")
    settings = Settings(redis_url=valkey_server, data_dir=folder / "data")
    services = open_services(settings)
    with ExitStack() as stack:
        stack.callback(services.close)
        limits = {"IVMIX_REQUEST_TIMEOUT_S": str(TIMEOUT_S)}
        api = stack.enter_context(api_process(settings, folder, files=300, **LOCAL_RECEIVERS, **limits))
        environment = {"IVMIX_REDIS_URL": valkey_server, "IVMIX_DATA_DIR": str(settings.data_dir)}
        stack.enter_context(started(environment | LOCAL_RECEIVERS, "service.webhook_dispatcher"))
        quick = stack.enter_context(Receiver())
        silent = [stack.enter_context(Receiver(raw(b"", pause_s=60))) for _ in range(12)]
        other = stack.enter_context(Tenant(api, services.keys))
        found = Service(api, services.keys, other, other, quick, silent)
        found.other.seconds_to_webhook(quick)  # the dispatcher is up
        found.undisturbed_s = min(found.other.p99_of_polls() for _ in range(3))
        yield found


@contextmanager
def in_threads(count: int, act: Callable[[int], object]) -> Iterator[None]:
    """act(0) to act(count - 1), each in a thread that is not waited for: most would outlast the test."""

    def attempt(i: int) -> None:
        with suppress(httpx2.HTTPError, RuntimeError):
            act(i)

    for i in range(count):
        threading.Thread(target=attempt, args=(i,), daemon=True).start()
    yield


def webhook_tests(service: Service) -> AbstractContextManager[None]:
    """60 at the same time, to receivers that never answer."""
    endpoints = [service.flooder.add_endpoint(receiver.url) for receiver in service.silent]

    def test(i: int) -> None:
        path = f"{service.api.url}/v1/webhook_endpoints/{endpoints[i % 12]}/test"
        headers = {"authorization": f"Bearer {service.flooder.secret}"}
        httpx2.post(path, json={"event_type": "video.failed"}, headers=headers, timeout=60, trust_env=False)

    return in_threads(60, test)


def webhooks_to_silent_receivers(service: Service) -> AbstractContextManager[None]:
    for receiver in service.silent:
        service.flooder.add_endpoint(receiver.url)
    videos = [service.flooder.create(callback_url=service.silent[0].url) for _ in range(10)]
    return in_threads(10, lambda i: service.flooder.http.post(f"/v1/videos/{videos[i]}/cancel"))


@contextmanager
def half_requests(service: Service) -> Iterator[None]:
    head = f"GET /v1/videos/{service.flooder.video_id} HTTP/1.1\r\nhost: localhost\r\n".encode()
    with ExitStack() as stack:
        connections = [stack.enter_context(service.api.connect(head)) for _ in range(300)]
        yield
        assert all(is_closed_within(connection, TIMEOUT_S + 30) for connection in connections)


@contextmanager
def event_streams(service: Service) -> Iterator[None]:
    path = f"/v1/videos/{service.flooder.video_id}/events"
    request = (
        f"GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {service.flooder.secret}\r\n\r\n".encode()
    )
    with ExitStack() as stack:
        streams = [stack.enter_context(service.api.connect(request)) for _ in range(100)]
        assert {status_of(stream) for stream in streams} >= {"200", "429"}
        yield


def status_of(connection: socket.socket) -> str | None:
    """None if the process has no room for this connection."""
    try:
        return connection.recv(12).decode().removeprefix("HTTP/1.1 ")
    except ConnectionError:
        return None


def invented_methods(service: Service) -> AbstractContextManager[None]:
    def send(i: int) -> None:
        with httpx2.Client(base_url=service.api.url, timeout=60, trust_env=False) as http:
            for _ in range(250):
                http.request(secrets.token_hex(20).upper(), "/v1/videos")

    return in_threads(4, send)


Flood = Callable[[Service], AbstractContextManager[None]]
FLOODS: list[Flood] = [webhook_tests, webhooks_to_silent_receivers, half_requests, event_streams, invented_methods]


@pytest.mark.sample(2)
@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_one_tenant_does_not_disturb_another(service: Service, flood: Flood) -> None:
    size = len(metrics(service))
    before_s = service.other.p99_of_polls()  # other tests share the cores, so what is undisturbed changes with them
    with Tenant(service.api, service.keys) as service.flooder, flood(service):
        p99_s = best_of_three(service.other.p99_of_polls, 2 * service.undisturbed_s + 0.05)
        webhook_s = best_of_three(lambda: service.other.seconds_to_webhook(service.quick), 2.0)
    undisturbed_s = max(service.undisturbed_s, before_s, service.other.p99_of_polls())
    assert p99_s <= 2 * undisturbed_s + 0.05
    assert webhook_s <= 2
    assert len(metrics(service)) < 2 * size
    assert service.api.is_alive()


def best_of_three(measure: Callable[[], float], good_enough: float) -> float:
    best = measure()
    for _ in range(2):
        if best > good_enough:
            best = min(best, measure())
    return best


def metrics(service: Service) -> str:
    return httpx2.get(f"{service.api.url}/metrics", timeout=30, trust_env=False).text
