"""`num_videos`: one request creates several videos, all or none, each counted against every limit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from redis.exceptions import RedisError
from rq import Queue

from service.errors import QueueFull
from service.jobs.record_reader import Idempotency
from service.jobs.request import MAX_SEED
from service.jobs.store import JobStore, QueueLimits
from service.settings import Settings
from service.wiring import Services
from tests.api_calls import create, error_of, services_for
from tests.factories import PROMPT, create_job, make_job
from tests.quick_app import quick_app

KEY = Idempotency("key", "fingerprint")


def jobs(count: int, **over: Any) -> list[Any]:
    return [make_job(**over) for _ in range(count)]


def test_all_are_created_with_seeds_one_apart(client: TestClient, queue: Queue) -> None:
    made = create(client, num_videos=3, seed=5, metadata={"a": "b"})
    assert made["video_ids"][0] == made["id"]
    videos = [client.get(f"/v1/videos/{video_id}").json() for video_id in made["video_ids"]]
    assert [video["seed"] for video in videos] == [5, 6, 7]
    assert [video["queue_position"] for video in videos] == [0, 1, 2]
    assert all("video_ids" not in video for video in videos)
    own = {"id", "seed", "queue_position", "created_at"}
    assert len({str({name: video[name] for name in video.keys() - own}) for video in videos}) == 1
    assert queue.job_ids == made["video_ids"]
    cancelled = client.post(f"/v1/videos/{made['video_ids'][1]}/cancel").json()
    assert cancelled["error"]["code"] == "cancelled"
    assert queue.job_ids == made["video_ids"][::2]


@pytest.mark.parametrize("name", ["n", "num_outputs_per_prompt", "num_videos_per_prompt"])
def test_other_servers_names_and_one_video(client: TestClient, name: str) -> None:
    assert len(create(client, **{name: 2})["video_ids"]) == 2
    single = create(client, seed=1)
    for one in (create(client, seed=1, **{name: 1}), create(client, seed=1, **{name: None})):
        assert one.keys() == single.keys()
    form = client.post("/v1/videos", data={"prompt": PROMPT, name: "2"}).json()
    assert len(form["video_ids"]) == 2
    assert error_of(client.post("/v1/videos", json={"prompt": PROMPT, name: 2, "num_videos": 3}), 400)


def test_seeds_stay_within_what_a_request_may_name(client: TestClient) -> None:
    ids = create(client, num_videos=2, seed=MAX_SEED)["video_ids"]
    assert [client.get(f"/v1/videos/{video_id}").json()["seed"] for video_id in ids] == [MAX_SEED, 0]


def test_a_repetition_gets_the_same_videos_without_deleted_ones(client: TestClient, queue: Queue) -> None:
    headers, body = {"idempotency-key": "k"}, {"prompt": PROMPT, "num_videos": 3}
    first = client.post("/v1/videos", json=body, headers=headers).json()
    again = client.post("/v1/videos", json=body, headers=headers)
    assert (again.headers["idempotent-replayed"], again.json()["video_ids"]) == ("true", first["video_ids"])
    assert error_of(client.post("/v1/videos", json=body | {"n": 2}, headers=headers), 400)
    reused = client.post("/v1/videos", json=body | {"num_videos": 2}, headers=headers)
    assert error_of(reused, 422)["code"] == "idempotency_key_reused"
    client.delete(f"/v1/videos/{first['id']}")
    rest = client.post("/v1/videos", json=body, headers=headers).json()
    assert (rest["id"], rest["video_ids"]) == (first["video_ids"][1], first["video_ids"][1:])
    for video_id in first["video_ids"][1:]:
        client.delete(f"/v1/videos/{video_id}")
    new = client.post("/v1/videos", json=body, headers=headers)
    assert "idempotent-replayed" not in new.headers
    assert queue.job_ids == new.json()["video_ids"]


def test_of_many_repetitions_at_once_one_creates(store: JobStore, queue: Queue) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: store.create_many(jobs(3), queue, idempotency=KEY), range(16)))
    assert {tuple(job.id for job in group) for group in made} == {tuple(queue.job_ids)}
    again = jobs(3)  # redis-py sends the command again if its reply was lost
    assert store.create_many(again, queue) == store.create_many(again, queue) == again
    assert len(queue.job_ids) == 6


def test_a_key_with_one_video_and_then_several_after_its_deletion(store: JobStore, queue: Queue) -> None:
    several = store.create_many(jobs(2), queue, idempotency=KEY)
    for job in several:
        store.delete(job.id)
    single = store.create(make_job(), queue, idempotency=KEY)
    assert store.find_by_idempotency_key(single.owner, KEY) == [single]


def test_without_room_for_all_none_is_created(store: JobStore, queue: Queue, services: Services) -> None:
    create_job(store, queue)
    for limits, whose in ((QueueLimits(3, 100), "the server"), (QueueLimits(100, 3), "this API key")):
        with pytest.raises(QueueFull, match=f"with 3 more, more than 3 videos would wait, the limit of {whose}"):
            store.create_many(jobs(3), queue, limits=limits)
        assert len(queue.job_ids) == 1
    services.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(RedisError):
            store.create_many(jobs(3), queue, idempotency=KEY)
    finally:
        services.redis.config_set("maxmemory", 0)
    assert len(store.list()[0]) == len(queue.job_ids) == 1
    assert len(store.create_many(jobs(2), queue, limits=QueueLimits(3, 3), idempotency=KEY)) == 2


def test_owners_take_turns_between_the_videos_of_a_request(store: JobStore, queue: Queue) -> None:
    first = store.create_many(jobs(3, owner="a"), queue)
    other = create_job(store, queue, owner="b")
    assert queue.job_ids == [first[0].id, other.id, first[1].id, first[2].id]


def test_more_than_a_limit_is_refused_by_name(settings: Settings) -> None:
    changed = settings.model_copy(update={"auth": "keys", "max_waiting": 3, "max_videos_per_request": 16})
    with services_for(changed) as services, TestClient(quick_app(services)) as client:
        for count, options, limit in (
            (5, {}, "is above 3, the limit of waiting videos of a model"),
            (3, {"max_waiting": 2}, "is above 2, the limit of waiting videos of this API key"),
            (3, {"requests_per_minute": 2}, "is above 2, the limit of new videos per minute of this API key"),
        ):
            headers = {"authorization": f"Bearer {services.keys.create('k', **options)[1]}"}
            for path in ("videos", "videos/estimate"):
                answer = client.post(f"/v1/{path}", json={"prompt": PROMPT, "n": count}, headers=headers)
                error = error_of(answer, 400)
                assert error["param"] == "num_videos"
                assert f"num_videos={count} {limit}" in error["message"]


def test_every_video_counts_towards_the_limit_per_minute(settings: Settings) -> None:
    changed = settings.model_copy(update={"auth": "keys"})
    with services_for(changed) as services, TestClient(quick_app(services)) as client:
        headers = {"authorization": f"Bearer {services.keys.create('k', requests_per_minute=5)[1]}"}
        answers = [client.post("/v1/videos", json={"prompt": PROMPT, "n": 3}, headers=headers) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]
        assert len(client.get("/v1/videos", headers=headers).json()["data"]) == 3


def test_values_that_are_refused(client: TestClient) -> None:
    above = error_of(client.post("/v1/videos", json={"prompt": PROMPT, "n": 5}), 400)
    assert "IVMIX_MAX_VIDEOS_PER_REQUEST" in above["message"]
    for value in (0, -1, 17, 1.5, "many"):
        assert error_of(client.post("/v1/videos", json={"prompt": PROMPT, "num_videos": value}), 400)["param"]
    sync = error_of(client.post("/v1/videos/sync", json={"prompt": PROMPT, "num_videos": 2}), 400)
    assert (sync["param"], "returns one MP4" in sync["message"]) == ("num_videos", True)


def test_a_video_is_made_again_several_times(client: TestClient) -> None:
    source = create(client, seed=9, n=2)["video_ids"][1]
    again = client.post(f"/v1/videos/{source}/run_again", json={"num_videos": 2}).json()
    remix = client.post(f"/v1/videos/{source}/remix", json={"prompt": PROMPT, "n": 3}).json()
    alone = client.post(f"/v1/videos/{source}/run_again").json()
    assert (again["seed"], len(again["video_ids"]), len(remix["video_ids"])) == (10, 2, 3)
    assert "video_ids" not in alone
    assert client.get(f"/v1/videos/{remix['video_ids'][2]}").json()["remixed_from_video_id"] == source
