"""Lists of videos, filtered: exact pages, found by indexes, whatever wrote the records."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.ids import new_job_id
from service.jobs.job_list import JobFilter
from service.jobs.keys import ACTIVE, INDEX, INDEXED, METADATA_INDEX, MODEL_INDEX, STATE_INDEX, job_key
from service.jobs.model import Job, JobState
from service.jobs.rq_queues import generate_queue
from service.maintenance.index_builder import IndexBuilder
from service.maintenance.lost_job_reaper import LostJobReaper
from service.maintenance.retention import Retention
from service.wiring import Services
from tests.api_calls import create, error_of
from tests.factories import make_generation, make_job, make_output

MATCHES, OTHERS = 3, 5040
ENDS = [JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED]


def ended(services: Services, state: JobState = JobState.COMPLETED, *, model: str = "demo", **fields: Any) -> Job:
    """Write the record of an ended job."""
    output = make_output() if state is JobState.COMPLETED else None
    job = make_job(state=state, output=output, generation=make_generation(model=model), **fields)
    assert services.store.restore(job)
    return job


def pages(client: TestClient, **query: Any) -> list[list[str]]:
    """All pages of a list; none is empty unless it is the only one."""
    found: list[list[str]] = []
    has_more, after = True, {}
    while has_more:
        answer = client.get("/v1/videos", params=query | after)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found.append([video["id"] for video in page["data"]])
        has_more, after = page["has_more"], {"after": page["last_id"]}
        assert found[-1] or not has_more
    return found


def script_calls(services: Services) -> int:
    redis: Any = services.redis
    return redis.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]


@pytest.mark.parametrize(
    ("wanted", "others", "query"),
    [
        ({"metadata": {"a": "1"}}, {"metadata": {"a": "2"}}, {"metadata[a]": "1"}),
        ({"state": JobState.FAILED}, {}, {"status": "failed"}),
        ({"model": "rare"}, {}, {"model": "rare"}),
        ({"model": "rare"}, {"metadata": {"a": "1"}}, {"model": "rare", "status": ["completed", "queued"]}),
    ],
    ids=["metadata", "status", "model", "model and status"],
)
def test_few_matches_behind_many_others_are_one_page(
    services: Services, client: TestClient, wanted: Any, others: Any, query: dict[str, str]
) -> None:
    matching = [ended(services, **wanted).id for _ in range(MATCHES)]
    redis: Any = services.redis
    template = redis.hgetall(job_key(ended(services, **others).id))
    ids = [new_job_id() for _ in range(OTHERS)]
    with redis.pipeline(transaction=False) as pipe:
        for job_id in ids:
            pipe.hset(job_key(job_id), mapping=template | {b"id": json.dumps(job_id).encode()})
        pipe.zadd(INDEX, dict.fromkeys(ids, 0))
        pipe.execute()
    services.store.reindex(ids)
    before = script_calls(services)
    page = client.get("/v1/videos", params=query).json()
    assert ([video["id"] for video in page["data"]], page["has_more"]) == (matching[::-1], False)
    assert script_calls(services) - before <= 2  # the first one may load the script


def test_matches_of_two_large_conditions_are_found(services: Services, client: TestClient) -> None:
    """The walk takes several calls of the script, the client one."""
    for i in range(1200):
        ended(services, [JobState.COMPLETED, JobState.FAILED][i % 2], metadata={"half": str(i // 600)})
    both = {"metadata[half]": "0", "status": "failed", "limit": "100"}
    assert [len(page) for page in pages(client, **both)] == [100, 100, 100]
    assert pages(client, **both | {"order": "asc"})[0] == pages(client, **both)[-1][::-1]


FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "owner": st.sampled_from(["a", "b"]),
        "model": st.sampled_from(["demo", "other", "none"]),
        "states": st.frozensets(st.sampled_from(JobState), max_size=3),
        "metadata": st.dictionaries(st.sampled_from(["x", "ü"]), st.sampled_from(["1", "é🎬"]), max_size=2),
        "created_after": st.integers(0, 30),
        "created_before": st.integers(0, 30),
    },
)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    filters=st.lists(FILTERS, min_size=5, max_size=5),
    descending=st.booleans(),
    limit=st.integers(1, 7),
    is_built=st.booleans(),
)
def test_every_filter_equals_a_scan(
    services: Services, filters: list[dict[str, Any]], limit: int, *, descending: bool, is_built: bool
) -> None:
    jobs = prepared(services, is_built=is_built)
    for given_filter in filters:
        times = {name: jobs[value].created_at for name, value in given_filter.items() if name.startswith("created")}
        wanted = JobFilter(**(given_filter | times))
        expected = [job.id for job in jobs if is_wanted(job, wanted)]
        expected.sort(reverse=descending)
        found: list[str] = []
        has_more = True
        while has_more:
            page, has_more = services.store.lists.page(
                wanted, limit=limit, order="desc" if descending else "asc", after=found[-1] if found else None
            )
            assert len(page) == limit or not has_more
            found += [job.id for job in page]
        assert found == expected


def is_wanted(job: Job, wanted: JobFilter) -> bool:
    return (
        wanted.owner in (None, job.owner)
        and wanted.model in (None, job.generation.model)
        and (not wanted.states or job.state in wanted.states)
        and wanted.metadata.items() <= job.metadata.items()
        and (wanted.created_after is None or job.created_at >= wanted.created_after)
        and (wanted.created_before is None or job.created_at < wanted.created_before)
    )


def prepared(services: Services, *, is_built: bool) -> list[Job]:
    """31 different jobs, the same ones in every example. Without `is_built` as an older version wrote them."""
    redis: Any = services.redis
    if redis.exists(INDEX) == 0:
        for i in range(31):
            metadata = dict.fromkeys(("x", "ü")[: i % 3], ("1", "é🎬")[i // 4 % 2])
            fields: dict[str, Any] = {"owner": "ab"[i % 2], "metadata": metadata}
            if i % 5 < len(ENDS):
                ended(services, ENDS[i % 5], model=("demo", "other")[i // 2 % 2], **fields)
            else:
                job = services.store.create(make_job(**fields), generate_queue(services.redis, "demo"))
                _ = services.store.start(job.id, "e") if i % 5 == 4 else None
    remove_indexes(services)
    if is_built:
        IndexBuilder(services.redis, services.store).run_once()
    found, _ = services.store.list(limit=100, order="asc")
    assert len(found) == 31
    return found


def remove_indexes(services: Services) -> None:
    """Leave what version 0.1 writes."""
    redis: Any = services.redis
    redis.delete(*redis.keys("ivm:index:*"), "none")


def test_indexes_of_old_records_are_built_once_and_lists_are_right_meanwhile(
    services: Services, client: TestClient
) -> None:
    wanted = [ended(services, metadata={"a": "b"}).id for _ in range(2)]
    for _ in range(120):
        ended(services)
    remove_indexes(services)
    assert pages(client, **{"metadata[a]": "b"}) == [wanted[::-1]]
    builder = IndexBuilder(services.redis, services.store)
    for _ in range(2):
        builder.run_once()
        before = script_calls(services)
        assert pages(client, **{"metadata[a]": "b"}) == [wanted[::-1]]
        assert script_calls(services) - before == 1


def test_a_change_by_an_older_worker_is_indexed_by_maintenance(services: Services, client: TestClient) -> None:
    made = create(client)["id"]
    services.redis.hset(job_key(made), "state", '"failed"')
    assert pages(client, status="queued") == [[]]
    retention = Retention(services.redis, services.store, services.storage, retention_s=60, tidy_after_s=10)
    LostJobReaper(services.redis, services.store, retention, grace_s=5, max_attempts=3).run_once()
    assert services.redis.smembers(ACTIVE) == set()
    assert pages(client, status="failed") == [[made]]


def test_every_state_is_found_while_a_job_goes_through_it(services: Services, client: TestClient) -> None:
    made = create(client)["id"]
    store = services.store

    def statuses() -> list[str]:
        return [name for name in ("queued", "in_progress", "completed", "failed") if pages(client, status=name)[0]]

    assert statuses() == ["queued"]
    job = store.start(made, "e1")
    assert job is not None
    assert statuses() == ["in_progress"]
    store.requeue(job, "e1")
    assert statuses() == ["queued"]
    store.start(made, "e2")
    store.complete(made, "e2", make_output(), {}, None)
    assert statuses() == ["completed"]
    cancelled = create(client)["id"]
    store.cancel(cancelled)
    assert statuses() == ["completed", "failed"]


def test_deleted_videos_leave_no_index_entries(services: Services, client: TestClient) -> None:
    made = [create(client, metadata={"a": "b", "c": "d"})["id"] for _ in range(2)]
    for video in made:
        services.store.cancel(video)
        assert client.delete(f"/v1/videos/{video}").status_code == 200
    redis: Any = services.redis
    assert redis.keys("ivm:index:*") == [INDEXED.encode()]
    assert redis.keys(f"{INDEX}*") == []


def test_an_entry_without_a_record_shortens_no_page(services: Services, client: TestClient) -> None:
    made = [ended(services).id for _ in range(5)]
    services.redis.delete(job_key(made[1]), job_key(made[2]))
    assert pages(client, limit=1, order="asc") == [[made[0]], [made[3]], [made[4]]]
    assert pages(client, limit=1, status="completed") == [[made[4]], [made[3]], [made[0]]]


def test_the_keys_in_python_are_those_of_the_scripts(services: Services) -> None:
    job = ended(services, JobState.FAILED, model="m", owner="o", metadata={"ü": "🎬"})
    redis: Any = services.redis
    keys = JobFilter("o", "m", frozenset({JobState.FAILED}), {"ü": "🎬"}).indexes
    assert all(redis.zscore(key, job.id) == 0 for [key] in keys)
    prefixes = (MODEL_INDEX, STATE_INDEX, METADATA_INDEX)
    assert all(key.startswith(prefix) for [key], prefix in zip(keys[1:], prefixes, strict=True))


def test_times_are_those_that_videos_show(client: TestClient) -> None:
    video = create(client)
    second = video["created_at"]
    assert pages(client, created_after=second) == [[video["id"]]]
    assert pages(client, created_after=second, created_before=second + 1) == [[video["id"]]]
    assert pages(client, created_before=second) == [[]]
    assert pages(client, created_after=math.nextafter(second + 1, math.inf)) == [[]]


def test_a_page_goes_on_after_a_deleted_video(services: Services, client: TestClient) -> None:
    made = [ended(services).id for _ in range(3)]
    assert client.delete(f"/v1/videos/{made[1]}").status_code == 200
    assert pages(client, after=made[1]) == [[made[0]]]


@pytest.mark.parametrize(
    ("query", "param", "words"),
    [
        ("after=nonsense", "after", "send the last_id of the previous page"),
        ("after=video_" + "0" * 32, "after", "No video has the id"),
        ("after=video_01a21941361a7719af9f04ca5415e4f7", "after", "No video has the id"),
        ("model=sora", "model", "this server offers demo"),
        ("status=cancelled", "status", "'queued', 'in_progress', 'completed' or 'failed'"),
        ("status=queued,done", "status", "'queued', 'in_progress', 'completed' or 'failed'"),
        ("status=queued&status=done", "status", "'queued', 'in_progress', 'completed' or 'failed'"),
        ("status=", "status", "empty"),
        ("status=queued,", "status", "'queued', 'in_progress', 'completed' or 'failed'"),
        ("model=", "model", "empty"),
        ("created_after=", "created_after", "empty"),
        ("created_after=yesterday", "created_after", "number"),
        ("created_after=-1", "created_after", "must be at least 0"),
        ("created_before=nan", "created_before", "must be at most"),
        ("created_before=1e99", "created_before", "must be at most"),
        ("metadata[]=x", "metadata[]", "NAME"),
        ("metadata[a=x", "metadata[a", "NAME"),
        ("&".join(f"metadata[{i}]=x" for i in range(17)), "metadata", "at most 16"),
    ],
)
def test_a_wrong_filter_is_refused_by_name(client: TestClient, query: str, param: str, words: str) -> None:
    create(client)
    error = error_of(client.get(f"/v1/videos?{query}"), 400)
    assert error["param"] == param
    assert words in error["message"]


def test_several_statuses_are_repeated_or_separated_by_commas(services: Services, client: TestClient) -> None:
    made = [ended(services, state).id for state in ENDS]
    queued = create(client)["id"]
    for query in ("status=completed&status=queued", "status=completed,queued", "status[]=completed&status[]=queued"):
        page = client.get(f"/v1/videos?{query}").json()
        assert [video["id"] for video in page["data"]] == [queued, made[0]]
