"""A damaged record harms nothing but itself: it is shown as failed, listed in order, and can be deleted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from service.api.app import create_app
from service.api_keys import KEYS, digest_of
from service.jobs.keys import ACTIVE, INDEX, idempotency_key, job_key, lease_key, owner_index
from service.jobs.model import LOCAL
from service.jobs.rq_queues import queue_key
from service.maintenance.lost_job_reaper import LostJobReaper
from service.maintenance.retention import Retention
from service.settings import Settings
from service.webhook_dispatcher.fan_out import FanOut
from service.webhooks import deliveries, endpoints
from service.wire.video import Renderer
from service.wiring import Services
from tests.factories import PROMPT, finish
from tests.quick_app import quick_app

Damage = Callable[[Any, str], object]


def in_generation(**fields: object) -> Damage:
    """Change fields of the generation; None removes one."""

    def damage(redis: Any, key: str) -> None:
        stored = json.loads(redis.hget(key, "generation"))
        changed = {name: value for name, value in (stored | fields).items() if value is not None}
        redis.hset(key, "generation", json.dumps(changed))

    return damage


def field(name: str, value: str | bytes) -> Damage:
    return lambda redis, key: redis.hset(key, name, value)


def not_a_hash(redis: Any, key: str) -> None:
    redis.delete(key)
    redis.set(key, "text")


DAMAGES: dict[str, Damage] = {
    "unknown field in generation": in_generation(colour="red"),
    "unknown field in sampler": in_generation(sampler={"name": "ddim", "colour": 1}),
    "unknown sampler": in_generation(sampler={"name": "none"}),
    "sampler is a list": in_generation(sampler=[]),
    "missing prompt": in_generation(prompt=None),
    "missing model": in_generation(model=None),
    "no frames per second": in_generation(fps=0),
    "a billion steps": in_generation(num_inference_steps=10**9),
    "generation is a number": field("generation", "7"),
    "broken JSON": field("generation", '{"model": '),
    "nested too deeply": field("metadata", "[" * 100_000),
    "not UTF-8": field("user", b'"\xff\xfe"'),
    "infinite time": field("created_at", "Infinity"),
    "time beyond all years": field("expires_at", "1e300"),
    "negative step": field("step", "-5"),
    "unknown state": field("state", '"resting"'),
    "unknown priority": field("priority", '"high"'),
    "other id": field("id", '"video_other"'),
    "owner is a number": field("owner", "7"),
    "output is text": field("output", '"video.mp4"'),
    "field name is not UTF-8": lambda redis, key: redis.hset(key, b"\xff", "1"),
    "no state": lambda redis, key: redis.hdel(key, "state"),
    "no owner": lambda redis, key: redis.hdel(key, "owner"),
    "no creation time": lambda redis, key: redis.hdel(key, "created_at"),
    "only one field": lambda redis, key: (redis.delete(key), redis.hset(key, "step", "1")),
    "not a hash": not_a_hash,
}


@contextmanager
def keyed_client(services: Services, *scopes: Any) -> Iterator[TestClient]:
    _, secret = services.keys.create("test", **({"scopes": scopes} if scopes else {}))
    with TestClient(quick_app(services), raise_server_exceptions=False) as http:
        http.headers["authorization"] = f"Bearer {secret}"
        yield http


@pytest.fixture
def settings(valkey: str, tmp_path: Path) -> Settings:
    return Settings(redis_url=valkey, data_dir=tmp_path / "data", auth="keys")


@pytest.fixture
def client(services: Services) -> Iterator[TestClient]:
    with keyed_client(services) as http:
        yield http


def create(client: TestClient, **body: object) -> str:
    answer = client.post("/v1/videos", json={"prompt": PROMPT} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def maintain(services: Services) -> None:
    """Run the reaper until it has recovered what is lost and handed over what has ended."""
    retention = Retention(services.redis, services.store, services.storage, retention_s=3600, tidy_after_s=0)
    reaper = LostJobReaper(services.redis, services.store, retention, grace_s=0, max_attempts=3)
    for _ in range(3):
        reaper.run_once()
    retention.run_once()


@pytest.fixture(params=DAMAGES.values(), ids=DAMAGES)
def damage(request: pytest.FixtureRequest) -> Damage:
    return request.param


@pytest.mark.sample(8)
def test_a_damaged_record_is_shown_listed_and_deleted(client: TestClient, services: Services, damage: Damage) -> None:
    ids = [create(client) for _ in range(3)]
    damage(services.redis, job_key(ids[1]))
    shown = client.get(f"/v1/videos/{ids[1]}")
    assert shown.status_code == 200, shown.text
    assert (shown.json()["id"], shown.json()["status"]) == (ids[1], "failed")
    assert shown.json()["error"]["code"] == "record_damaged"
    assert client.get(f"/v1/videos/{ids[1]}/content").status_code == 404
    assert client.get(f"/v1/videos/{ids[1]}/events").text.startswith("event: video.failed")
    assert client.post(f"/v1/videos/{ids[1]}/remix", json={"prompt": PROMPT}).status_code == 404
    assert client.post(f"/v1/videos/{ids[1]}/cancel").status_code == 200
    page = client.get("/v1/videos?order=asc").json()
    assert [video["id"] for video in page["data"]] == ids
    assert client.get("/v1/queue").status_code == 200
    assert client.get("/metrics").status_code == 200
    assert client.delete(f"/v1/videos/{ids[1]}").json()["deleted"] is True
    assert client.get(f"/v1/videos/{ids[1]}").status_code == 404
    maintain(services)
    left = [ids[0].encode(), ids[2].encode()]
    redis: Any = services.redis
    assert redis.lrange(queue_key("demo"), 0, -1) == left
    for index in [INDEX, *(key.decode() for key in redis.scan_iter(owner_index("key_*")))]:
        assert redis.zrange(index, 0, -1) == left


@pytest.mark.sample(4)
def test_pages_of_damaged_records_go_on(client: TestClient, services: Services, damage: Damage) -> None:
    ids = [create(client) for _ in range(4)]
    for damaged in ids[1:3]:
        damage(services.redis, job_key(damaged))
    seen: list[str] = []
    query = {"limit": 1, "order": "asc"}
    for page_number in range(4):
        page = client.get("/v1/videos", params=query | ({"after": seen[-1]} if seen else {})).json()
        seen += [video["id"] for video in page["data"]]
        assert page["has_more"] is (page_number < 3)
    assert seen == ids


@pytest.mark.sample(12)
@pytest.mark.parametrize("is_running", [False, True])
def test_a_damaged_job_ends(client: TestClient, services: Services, damage: Damage, *, is_running: bool) -> None:
    """Its worker fails it when it takes it, or maintenance if it has none; no other job is affected."""
    damaged, sound = create(client), create(client)
    redis: Any = services.redis
    redis.lrem(queue_key("demo"), 1, damaged)
    if is_running:
        services.store.start(damaged, "e")
        redis.delete(lease_key(damaged))
    damage(redis, job_key(damaged))
    maintain(services)
    assert json.loads(redis.hget(job_key(damaged), "state")) == "failed"
    assert redis.smembers(ACTIVE) == {sound.encode()}
    assert client.get(f"/v1/videos/{damaged}").json()["error"]["code"] == "record_damaged"
    assert client.get(f"/v1/videos/{sound}").json()["status"] == "queued"


@pytest.mark.sample(4)
def test_an_admin_sees_and_deletes_it(client: TestClient, services: Services, damage: Damage) -> None:
    damaged = create(client)
    damage(services.redis, job_key(damaged))
    with keyed_client(services, "admin") as admin, keyed_client(services) as stranger:
        assert stranger.get(f"/v1/videos/{damaged}").status_code == 404
        assert stranger.delete(f"/v1/videos/{damaged}").status_code == 404
        assert admin.get(f"/v1/videos/{damaged}").json()["status"] == "failed"
        assert admin.delete(f"/v1/videos/{damaged}").status_code == 200
    assert client.get("/v1/videos").json()["data"] == []


def test_a_repeated_request_gets_the_damaged_video(client: TestClient, services: Services) -> None:
    headers, body = {"idempotency-key": "k"}, {"prompt": PROMPT}
    first = client.post("/v1/videos", json=body, headers=headers).json()["id"]
    DAMAGES["unknown field in generation"](services.redis, job_key(first))
    again = client.post("/v1/videos", json=body, headers=headers)
    assert (again.status_code, again.json()["id"], again.json()["status"]) == (200, first, "failed")


@pytest.mark.parametrize("lost", ["id", "fingerprint"])
def test_a_damaged_idempotency_record_counts_as_none(client: TestClient, services: Services, lost: str) -> None:
    headers, body = {"idempotency-key": "k"}, {"prompt": PROMPT}
    first = client.post("/v1/videos", json=body, headers=headers).json()["id"]
    owner = json.loads(services.redis.hget(job_key(first), "owner") or "")  # type: ignore[arg-type]
    services.redis.hdel(idempotency_key(owner, "k"), lost)
    again = client.post("/v1/videos", json=body, headers=headers)
    assert again.status_code == 200, again.text
    assert again.json()["id"] != first


@pytest.mark.sample(6)
def test_the_webhook_of_a_damaged_job_says_that_it_failed(services: Services, damage: Damage) -> None:
    endpoint = services.webhooks.endpoints.create(
        LOCAL, name="n", url="https://example.com", event_types=("video.failed", "video.completed")
    )
    settings = services.settings.model_copy(update={"auth": "off"})
    with TestClient(create_app(Services(**(vars(services) | {"settings": settings})))) as http:
        video = create(http)
    damage(services.redis, job_key(video))
    services.redis.lrem(queue_key("demo"), 1, video)  # type: ignore[no-untyped-call]
    maintain(services)
    FanOut(services.webhooks, Renderer(services.settings, services.storage)).run_once()
    assert services.webhooks.outbox.depth() == 0
    found, _ = services.webhooks.deliveries.list(LOCAL)
    owner_is_lost = damage in (
        DAMAGES[name] for name in ("owner is a number", "no owner", "only one field", "not a hash")
    )
    assert [json.loads(each.body)["type"] for each in found] == ([] if owner_is_lost else ["video.failed"])
    assert [each.endpoint_id for each in found] == ([] if owner_is_lost else [endpoint.id])


def test_files_of_a_damaged_video_are_deleted_with_it(client: TestClient, services: Services, tmp_path: Path) -> None:
    video = create(client)
    finish(services, video, b"content", scratch=tmp_path)
    DAMAGES["unknown field in sampler"](services.redis, job_key(video))
    assert list(services.storage.list("videos/"))
    assert client.delete(f"/v1/videos/{video}").status_code == 200
    assert not list(services.storage.list("videos/"))


def test_a_damaged_api_key_breaks_no_other(client: TestClient, services: Services) -> None:
    services.redis.hset(KEYS, "digest", "{")
    assert len(services.keys.list()) == 1
    key, secret = services.keys.create("other")
    services.redis.hset(KEYS, "another", b"\xff")
    assert services.keys.find(digest_of(secret)) == key
    assert services.keys.revoke(key.id) is not None
    assert client.get("/v1/videos").status_code == 200


@pytest.mark.parametrize("value", [b"{", b"\xff", b'{"id": 7}'])
def test_a_damaged_webhook_endpoint_breaks_no_other(services: Services, value: bytes) -> None:
    store = services.webhooks.endpoints
    made = [store.create(LOCAL, name=n, url="https://example.com", event_types=("video.failed",)) for n in "abc"]
    damaged = made[1].id
    services.redis.set(endpoints._key(damaged), value)  # pyright: ignore[reportPrivateUsage]
    assert [found.name for found in store.subscribed(LOCAL, "video.failed")] == ["c", "a"]
    page, has_more = store.list(LOCAL, limit=1, after=made[2].id)
    assert ([found.name for found in page], has_more) == (["a"], False)
    store.delete(LOCAL, damaged)
    assert store.find(damaged) is None


@pytest.mark.parametrize(("name", "value"), [("attempts", "x"), ("state", '"resting"'), ("body", b'"\xff"')])
def test_a_damaged_delivery_breaks_no_other(services: Services, name: str, value: str | bytes) -> None:
    redis: Redis = services.redis
    event = {"event_id": "e", "event_type": "video.failed", "video_id": "v", "owner": LOCAL, "body": "{}"}
    made = [deliveries.new_delivery(url="https://example.com", **event) for _ in range(3)]
    for delivery in made:
        for command in deliveries.creation_commands(delivery):
            redis.execute_command(*command)
    redis.hset(deliveries.key(made[1].id), name, value)
    store = services.webhooks.deliveries
    page, has_more = store.list(LOCAL, limit=2)
    assert ([found.id for found in page], has_more) == ([made[2].id, made[0].id], False)
    claimed = [each[0] for each in store.claim(10, now=time.time() + 1)]
    assert [found.id for found in map(store.find, claimed) if found] == [made[0].id, made[2].id]
    assert store.pending() == 2
