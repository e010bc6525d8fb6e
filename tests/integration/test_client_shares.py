"""Event streams and waiting requests: every client has its share, and they end with their API key."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import Redis

from service import api_keys
from service.api import sse
from service.api_keys import KEYS, ApiKey, Scope
from service.settings import Settings
from service.wiring import Services
from tests.conftest import serve
from tests.factories import PROMPT, make_output
from tests.processes import wait_for

SHARE, TOTAL = 5, 12


@pytest.fixture
def settings(valkey: str, tmp_path: Path) -> Settings:
    local_receivers = {"webhook_allow": ("127.0.0.0/8",), "webhook_allow_http": True}
    return Settings(redis_url=valkey, data_dir=tmp_path, max_held=TOTAL, max_held_per_key=SHARE, **local_receivers)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "POLL_INTERVAL_S", 0.05)
    monkeypatch.setattr(api_keys, "CACHE_S", 0.2)


class Client:
    """An API key and an HTTP client that sends it."""

    def __init__(self, services: Services, url: str, **options: Any) -> None:
        self.key, secret = services.keys.create("test", **options)
        headers = {"authorization": f"Bearer {secret}"}
        self.http = httpx2.Client(base_url=url, headers=headers, timeout=30, trust_env=False)

    def create(self) -> str:
        return self.http.post("/v1/videos", json={"prompt": PROMPT}).json()["id"]

    def open_stream(self, stack: ExitStack, video_id: str) -> httpx2.Response:
        return stack.enter_context(self.http.stream("GET", f"/v1/videos/{video_id}/events"))


NewClient = Callable[..., Client]


@pytest.fixture
def new_client(services: Services, server: str) -> Iterator[NewClient]:
    with ExitStack() as stack:

        def make(**options: Any) -> Client:
            client = Client(services, server, **options)
            stack.callback(client.http.close)
            return client

        yield make


def test_one_key_cannot_take_every_stream(new_client: NewClient) -> None:
    greedy, other = new_client(), new_client()
    video_id, others_id = greedy.create(), other.create()
    with ExitStack() as stack:
        answers = [greedy.open_stream(stack, video_id) for _ in range(100)]
        assert Counter(answer.status_code for answer in answers) == {200: SHARE, 429: 100 - SHARE}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert f"limit {SHARE} for this API key" in refused.read().decode()
        assert refused.headers["retry-after"]
        assert [other.open_stream(stack, others_id).status_code for _ in range(SHARE)] == [200] * SHARE


def test_the_total_limit_stays(new_client: NewClient) -> None:
    clients = [new_client() for _ in range(4)]
    with ExitStack() as stack:
        answers = [client.open_stream(stack, client.create()) for client in clients for _ in range(4)]
        statuses = [answer.status_code for answer in answers]
        assert statuses == [200] * TOTAL + [429] * (16 - TOTAL)
        assert f"limit {TOTAL} for all clients" in answers[-1].read().decode()


def test_waiting_requests_and_streams_have_one_share(new_client: NewClient) -> None:
    client = new_client()
    with ExitStack() as stack:
        for _ in range(SHARE):
            client.open_stream(stack, client.create())
        refused = client.http.post("/v1/videos/sync", json={"prompt": PROMPT})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")


def test_keys_with_the_same_owner_share(new_client: NewClient) -> None:
    old = new_client()
    new = new_client(owner=old.key.owner)
    with ExitStack() as stack:
        video_id = old.create()
        answers = [client.open_stream(stack, video_id) for client in (old, new) for _ in range(SHARE)]
        assert [answer.status_code for answer in answers] == [200] * SHARE + [429] * SHARE


def test_without_keys_every_address_has_its_share(services: Services, settings: Settings) -> None:
    """The addresses as a proxy reports them."""
    changed = settings.model_copy(update={"auth": "off"})
    with ExitStack() as stack:
        url = stack.enter_context(serve(replace(services, settings=changed)))
        http = stack.enter_context(httpx2.Client(base_url=url, timeout=30, trust_env=False))
        video_id = http.post("/v1/videos", json={"prompt": PROMPT}).json()["id"]

        def statuses(address: str) -> list[int]:
            return [
                stack.enter_context(
                    http.stream("GET", f"/v1/videos/{video_id}/events", headers={"x-forwarded-for": address})
                ).status_code
                for _ in range(SHARE + 1)
            ]

        assert statuses("192.0.2.1") == [200] * SHARE + [429]
        assert statuses("192.0.2.2") == [200] * SHARE + [429]


def revoke(services: Services, key: ApiKey) -> None:
    services.keys.revoke(key.id)


def take_scopes(services: Services, key: ApiKey) -> None:
    """As an operator could by editing the record."""
    redis: Redis = services.redis
    for digest, record in redis.hgetall(KEYS).items():
        found = ApiKey.model_validate_json(record)
        if found.id == key.id:
            redis.hset(KEYS, digest, found.model_copy(update={"scopes": frozenset({Scope.WEBHOOKS})}).model_dump_json())


def forget(services: Services, _key: ApiKey) -> None:
    services.redis.delete(KEYS)


ENDINGS = pytest.mark.parametrize("end", [revoke, take_scopes, forget])


@ENDINGS
def test_a_stream_ends_with_its_key(services: Services, new_client: NewClient, end: Any) -> None:
    client = new_client()
    with ExitStack() as stack:
        lines = client.open_stream(stack, client.create()).iter_lines()
        assert next(lines).startswith("event: video.progress")
        end(services, client.key)
        assert "video.completed" not in "".join(lines)  # reads to the end of the stream


@ENDINGS
def test_a_waiting_request_ends_with_its_key(services: Services, new_client: NewClient, end: Any) -> None:
    client = new_client()
    answers: list[httpx2.Response] = []

    def wait() -> None:
        answers.append(client.http.post("/v1/videos/sync", json={"prompt": PROMPT}))

    waiting = threading.Thread(target=wait)
    waiting.start()
    job = wait_for(lambda: next(iter(services.store.list()[0]), None), timeout_s=30)
    end(services, client.key)
    waiting.join(30)
    assert answers[0].status_code in (401, 403)
    assert services.store.start(job.id, "e1"), "the video itself goes on"


def test_a_webhook_test_ends_with_its_key(services: Services, new_client: NewClient) -> None:
    """No dispatcher runs, so it would wait for half a minute."""
    client = new_client()
    body = {"name": "x", "url": "http://127.0.0.1:9009/", "event_types": ["video.failed"]}
    endpoint = client.http.post("/v1/webhook_endpoints", json=body).json()["id"]
    answers: list[httpx2.Response] = []

    def test() -> None:
        path = f"/v1/webhook_endpoints/{endpoint}/test"
        answers.append(client.http.post(path, json={"event_type": "video.failed"}))

    waiting = threading.Thread(target=test)
    waiting.start()
    wait_for(lambda: services.webhooks.deliveries.pending() or None, timeout_s=30)
    services.keys.revoke(client.key.id)
    waiting.join(30)
    assert answers[0].status_code == 401


def test_another_key_of_the_owner_goes_on(services: Services, new_client: NewClient) -> None:
    old = new_client()
    new = new_client(owner=old.key.owner)
    video_id = old.create()
    with ExitStack() as stack:
        ending = old.open_stream(stack, video_id).iter_lines()
        going_on = new.open_stream(stack, video_id).iter_lines()
        services.keys.revoke(old.key.id)
        assert "video.completed" not in "".join(ending)
        assert services.store.start(video_id, "e1")
        assert services.store.complete(video_id, "e1", make_output(), {"sampling": 1.0}, None)
        assert "video.completed" in "".join(going_on)
