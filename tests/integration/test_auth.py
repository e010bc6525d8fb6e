"""API keys, scopes, ownership, limits and idempotency over HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from service import api_keys as keys_module
from service.api.app import create_app
from service.api_keys import KEYS, KeyStore, Scope, digest_of
from service.jobs.model import Job
from service.jobs.rq_queues import generate_queue
from service.settings import Settings
from service.webhooks.url_policy import UrlPolicy
from service.wiring import Services, open_services
from tests.factories import PROMPT, make_generation

Keyed = Callable[..., dict[str, str]]


@pytest.fixture
def settings(valkey: str, tmp_path: Any) -> Settings:
    return Settings(redis_url=valkey, data_dir=tmp_path)  # API keys are required by default


@pytest.fixture
def keyed(services: Services) -> Keyed:
    """keyed(scopes=..) -> headers with a new key"""
    return lambda **options: {"authorization": f"Bearer {services.keys.create('test', **options)[1]}"}


def create(client: TestClient, headers: dict[str, str], **body: Any) -> Any:
    return client.post("/v1/videos", json={"prompt": PROMPT} | body, headers=headers)


def code_of(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return answer.json()["error"]["code"]


OPERATIONS = [
    ("GET", "/v1/videos"),
    ("POST", "/v1/videos"),
    ("GET", "/v1/videos/video_x"),
    ("DELETE", "/v1/videos/video_x"),
    ("GET", "/v1/videos/video_x/content"),
    ("POST", "/v1/videos/video_x/cancel"),
    ("POST", "/v1/videos/video_x/remix"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/demo"),
]


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer ", "Basic dTpw", "ivmix_x"])
def test_every_endpoint_needs_a_key(client: TestClient, method: str, path: str, given: str | None) -> None:
    answer = client.request(method, path, headers={"authorization": given} if given else {})
    assert code_of(answer, 401) == "invalid_api_key"
    assert answer.json()["error"]["type"] == "authentication_error"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/openapi.json", "/docs"])
def test_health_and_description_need_no_key(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 200


def test_a_key_with_the_default_scopes_makes_and_reads_videos(client: TestClient, keyed: Keyed) -> None:
    headers = keyed()
    made = create(client, headers).json()
    assert client.get(f"/v1/videos/{made['id']}", headers=headers).json()["id"] == made["id"]


def test_a_key_is_limited_to_its_scopes(client: TestClient, keyed: Keyed) -> None:
    reader, writer, hooks = (keyed(scopes=[scope]) for scope in (Scope.READ, Scope.WRITE, Scope.WEBHOOKS))
    made = create(client, writer).json()
    assert code_of(create(client, reader), 403) == "insufficient_scope"
    assert "videos.read" in client.get("/v1/videos", headers=writer).json()["error"]["message"]
    for refused in (writer, hooks):
        assert code_of(client.get(f"/v1/videos/{made['id']}", headers=refused), 403) == "insufficient_scope"


@pytest.mark.parametrize(
    ("method", "path"), [operation for operation in OPERATIONS if "video_x" in operation[1]], ids=" ".join
)
def test_the_video_of_another_key_is_404(client: TestClient, keyed: Keyed, method: str, path: str) -> None:
    mine, other = keyed(), keyed()
    made = create(client, mine).json()
    path = path.replace("video_x", made["id"])
    body = {"json": {"prompt": PROMPT}} if path.endswith("remix") else {}
    answer = client.request(method, path, headers=other, **body)
    assert code_of(answer, 404) == "video_not_found"
    assert client.get(f"/v1/videos/{made['id']}", headers=mine).json()["status"] == "queued"


def test_a_list_shows_the_videos_of_its_own_key(client: TestClient, keyed: Keyed) -> None:
    mine, other, admin = keyed(), keyed(), keyed(scopes=[Scope.ADMIN])
    first, second = create(client, mine).json(), create(client, other).json()

    def listed(headers: dict[str, str]) -> list[str]:
        return [video["id"] for video in client.get("/v1/videos", headers=headers).json()["data"]]

    assert (listed(mine), listed(other)) == ([first["id"]], [second["id"]])
    assert listed(admin) == [second["id"], first["id"]]
    client.post(f"/v1/videos/{first['id']}/cancel", headers=admin)
    assert client.delete(f"/v1/videos/{first['id']}", headers=mine).json()["deleted"] is True
    assert listed(mine) == []


def test_a_key_can_replace_another(client: TestClient, services: Services) -> None:
    old, old_secret = services.keys.create("old")
    _, new_secret = services.keys.create("new", owner=old.owner)
    made = create(client, {"authorization": f"Bearer {old_secret}"}).json()
    answer = client.get(f"/v1/videos/{made['id']}", headers={"authorization": f"Bearer {new_secret}"})
    assert answer.json()["id"] == made["id"]


def test_a_revoked_key_is_refused_within_seconds(
    client: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "CACHE_S", 0.0)
    key, secret = services.keys.create("short")
    headers = {"authorization": f"Bearer {secret}"}
    assert client.get("/v1/videos", headers=headers).status_code == 200
    assert services.keys.revoke(key.id) is not None
    assert code_of(client.get("/v1/videos", headers=headers), 401) == "invalid_api_key"


class TestKeyStore:
    @pytest.fixture
    def store(self, valkey: str) -> Iterator[KeyStore]:
        with Redis.from_url(valkey) as redis:
            yield KeyStore(redis)

    def test_the_key_itself_is_nowhere_in_redis(self, store: KeyStore, valkey: str) -> None:
        key, secret = store.create("a")
        assert re.fullmatch(r"ivmix_[\w-]{43}", secret)
        assert store.find(digest_of(secret)) == key
        with Redis.from_url(valkey) as redis:
            everything = b"".join(part for pair in redis.hgetall(KEYS).items() for part in pair)
        assert secret.encode() not in everything
        assert secret.removeprefix("ivmix_").encode() not in everything

    def test_a_key_is_remembered_for_a_while_and_forgotten_when_revoked(self, store: KeyStore) -> None:
        key, secret = store.create("a")
        assert store.find_cached(digest_of(secret)) is None
        store.find(digest_of(secret))
        assert store.find_cached(digest_of(secret)) == key
        store.revoke(key.id)
        assert store.find(digest_of(secret)) is None
        assert store.find_cached(digest_of(secret)) is None

    def test_all_keys_are_listed_with_their_last_use(self, store: KeyStore) -> None:
        (first, secret), (second, _) = store.create("a"), store.create("b", scopes=[Scope.READ], max_waiting=3)
        store.find(digest_of(secret))
        (shown, used), (other, unused) = store.list()
        assert (shown, other) == (first, second)
        assert used is not None
        assert unused is None

    def test_revoking_twice_keeps_the_first_time_and_an_unknown_one_is_none(self, store: KeyStore) -> None:
        key, _ = store.create("a")
        assert store.revoke(key.id) == store.revoke(key.id)
        assert store.revoke("key_x") is None


class TestLimits:
    def test_a_key_over_its_rate_limit_is_429_with_retry_after(self, client: TestClient, keyed: Keyed) -> None:
        headers, other = keyed(requests_per_minute=3), keyed(requests_per_minute=3)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: create(client, headers), range(12)))
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 9
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert code_of(refused, 429) == "rate_limit_exceeded"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert create(client, other).status_code == 200

    def test_polling_is_never_limited(self, client: TestClient, keyed: Keyed) -> None:
        headers = keyed(requests_per_minute=1)
        made = create(client, headers).json()
        polls = [client.get(f"/v1/videos/{made['id']}", headers=headers).status_code for _ in range(30)]
        assert set(polls) == {200}

    def test_queued_videos_per_key_are_limited(self, client: TestClient, keyed: Keyed, services: Services) -> None:
        headers, other = keyed(max_waiting=2), keyed()
        made = [create(client, headers).json()["id"] for _ in range(2)]
        refused = create(client, headers)
        assert code_of(refused, 429) == "queue_full"
        assert 0 < int(refused.headers["retry-after"]) <= 120
        assert create(client, other).status_code == 200
        services.store.start(made[0], "e1")  # no longer queued
        assert create(client, headers).status_code == 200
        assert code_of(create(client, headers), 429) == "queue_full"
        client.post(f"/v1/videos/{made[1]}/cancel", headers=headers)
        assert create(client, headers).status_code == 200

    def test_fifty_concurrent_requests_do_not_exceed_the_queue_limit(self, settings: Settings) -> None:
        bounded = settings.model_copy(update={"auth": "off", "max_waiting": 10})
        services = open_services(bounded)
        with TestClient(create_app(services)) as client, ThreadPoolExecutor(25) as pool:
            answers = list(pool.map(lambda _: create(client, {}), range(50)))
        assert sorted(answer.status_code for answer in answers) == [200] * 10 + [429] * 40
        assert len(generate_queue(services.redis, "demo").job_ids) == 10
        assert len(services.store.list(limit=100)[0]) == 10
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert code_of(refused, 429) == "queue_full"
        assert refused.headers["retry-after"]
        services.close()


class TestIdempotency:
    def test_twenty_concurrent_requests_with_one_key_create_one_video(
        self, client: TestClient, keyed: Keyed, services: Services
    ) -> None:
        headers = keyed() | {"idempotency-key": "one"}
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: create(client, headers), range(20)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert len({answer.json()["seed"] for answer in answers}) == 1
        assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
        assert len(generate_queue(services.redis, "demo").job_ids) == 1

    def test_a_replay_shows_the_video_as_it_is_now(self, client: TestClient, keyed: Keyed, services: Services) -> None:
        headers = keyed() | {"idempotency-key": '"quoted"'}
        made = create(client, headers).json()
        services.store.start(made["id"], "e1")
        again = create(client, headers | {"idempotency-key": "quoted"})
        assert (again.json()["id"], again.json()["status"]) == (made["id"], "in_progress")
        assert again.headers["idempotent-replayed"] == "true"

    def test_the_same_request_in_another_encoding_is_the_same(self, client: TestClient, keyed: Keyed) -> None:
        headers = keyed() | {"idempotency-key": "one"}
        first = client.post("/v1/videos", json={"prompt": PROMPT, "seed": 3}, headers=headers)
        second = client.post("/v1/videos", files={"seed": (None, "3"), "prompt": (None, PROMPT)}, headers=headers)
        assert first.json()["id"] == second.json()["id"]

    def test_another_request_under_the_same_key_is_refused(self, client: TestClient, keyed: Keyed) -> None:
        headers = keyed() | {"idempotency-key": "one"}
        source = create(client, headers).json()["id"]
        assert code_of(create(client, headers, seed=4), 422) == "idempotency_key_reused"
        remix = client.post(f"/v1/videos/{source}/remix", json={"prompt": PROMPT}, headers=headers)
        assert code_of(remix, 422) == "idempotency_key_reused"

    def test_two_owners_may_use_the_same_key(self, client: TestClient, keyed: Keyed) -> None:
        name = {"idempotency-key": "one"}
        assert create(client, keyed() | name).json()["id"] != create(client, keyed() | name).json()["id"]

    def test_a_replay_is_answered_even_when_the_queue_is_full(self, client: TestClient, keyed: Keyed) -> None:
        headers = keyed(max_waiting=1) | {"idempotency-key": "one"}
        assert create(client, headers).json()["id"] == create(client, headers).json()["id"]

    def test_a_replay_is_not_validated_again(self, services: Services, keyed: Keyed) -> None:
        """Regression: the host of the callback was resolved again, which took up to 3 s or failed the replay."""
        looked_up: list[str] = []

        def resolve(host: str, port: int) -> list[str]:
            looked_up.append(host)
            return ["93.184.216.34"] if len(looked_up) == 1 else ["127.0.0.1"]

        webhooks = replace(services.webhooks, url_policy=UrlPolicy(resolver=resolve))
        headers = keyed() | {"idempotency-key": "one"}
        with TestClient(create_app(replace(services, webhooks=webhooks))) as http:
            first, again = (create(http, headers, callback_url="https://app.example.com/") for _ in range(2))
            assert again.json()["id"] == first.json()["id"]
            other = create(http, headers | {"idempotency-key": "two"}, callback_url="https://app.example.com/")
            assert code_of(other, 400) == "invalid_value"
        assert len(looked_up) == 2

    def test_a_refused_request_leaves_its_key_free(self, client: TestClient, keyed: Keyed) -> None:
        key = keyed(max_waiting=1)
        first = create(client, key).json()["id"]
        assert create(client, key | {"idempotency-key": "one"}).status_code == 429
        client.post(f"/v1/videos/{first}/cancel", headers=key)
        assert "idempotent-replayed" not in create(client, key | {"idempotency-key": "one"}).headers

    def test_the_key_of_a_deleted_video_is_free_again(self, client: TestClient, keyed: Keyed) -> None:
        headers = keyed() | {"idempotency-key": "one"}
        made = create(client, headers).json()["id"]
        client.post(f"/v1/videos/{made}/cancel", headers=headers)
        client.delete(f"/v1/videos/{made}", headers=headers)
        assert create(client, headers).json()["id"] != made

    def test_a_key_is_forgotten_after_a_day(self, client: TestClient, keyed: Keyed, services: Services) -> None:
        create(client, keyed() | {"idempotency-key": "one"})
        [key] = services.redis.keys("ivm:idem:*")
        assert 86_000 < services.redis.ttl(key) <= 86_400

    @pytest.mark.parametrize("given", ["", "x" * 256, "tab\there"])
    def test_an_invalid_idempotency_key_is_refused_by_name(self, client: TestClient, keyed: Keyed, given: str) -> None:
        answer = create(client, keyed() | {"idempotency-key": given})
        assert code_of(answer, 400) == "invalid_value"
        assert answer.json()["error"]["param"] == "Idempotency-Key"


class TestPriority:
    def test_normal_videos_go_before_low_ones_that_wait(
        self, client: TestClient, keyed: Keyed, services: Services
    ) -> None:
        headers = keyed()
        names = {}
        for name in ("low", "normal", "low", "low", "normal"):
            made = create(client, headers, priority=name).json()
            names[made["id"]] = f"{name}{len(names)}"
        waiting = [names[job_id] for job_id in generate_queue(services.redis, "demo").job_ids]
        assert waiting == ["normal1", "normal4", "low0", "low2", "low3"]


def test_creating_a_job_twice_creates_one(services: Services) -> None:
    """redis-py repeats a command when its reply was lost."""
    queue = generate_queue(services.redis, "demo")
    job = Job.new(make_generation())
    assert services.store.create(job, queue) == services.store.create(job, queue) == job
    assert queue.job_ids == [job.id]
