"""Faults of queue entries and job records."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.ids import new_id
from service.jobs.keys import ACTIVE, INDEX, job_key, owner_index, waiting_key
from service.jobs.model import Callback, Job, JobState
from service.jobs.rq_queues import generate_queue, recorded_generate
from tests.factories import make_generation
from tests.faults.injection import Injection

CORRUPTIBLE = ("generation", "execution_id", "step", "created_at", "callback")
OLD_RECORDS = Path(__file__).parents[1] / "data" / "records_0_1_0.json"


def push_twice(injection: Injection) -> Iterator[float]:
    job = injection.job(JobState.RUNNING)
    injection.record(victim=job.id)
    redis: Any = injection.cluster.redis
    redis.lpush(generate_queue(redis, "demo").key, job.id)
    yield 0.0


def lose_entry(injection: Injection) -> Iterator[float]:
    redis: Any = injection.cluster.redis
    job = injection.job(JobState.QUEUED)
    injection.record(victim=job.id)
    redis.lrem(generate_queue(redis, "demo").key, 0, job.id)
    redis.delete(f"rq:job:{job.id}")
    yield 0.0


def corrupt_record(injection: Injection) -> Iterator[float]:
    """Submit a job and corrupt its record. The checker exempts it from promises that its record can no longer keep."""
    cluster = injection.cluster
    generation = make_generation(num_inference_steps=injection.random.randint(1, 30))
    job = Job.new(generation, owner=cluster.owner(), callback=Callback(url=cluster.receiver.url))
    name = injection.random.choice(CORRUPTIBLE)
    injection.record(corrupted=job.id, field=name)
    cluster.services.store.create(job, generate_queue(cluster.redis, "demo"))
    time.sleep(injection.random.choice((0.0, 1.0)))
    redis: Any = cluster.redis
    if redis.exists(job_key(job.id)):
        redis.hset(job_key(job.id), name, injection.random.choice(("garbage", json.dumps({"no": "sense"}))))
    yield 0.0


def write_old_record(injection: Injection) -> Iterator[float]:
    """A queued job as version 0.1.0 stored it: its fields, its indexes and its queue entry."""
    cluster, job_id = injection.cluster, new_id("video")
    stored = json.loads(OLD_RECORDS.read_text())
    fields = dict(stored["keys"][job_key(stored["names"]["queued"])]["value"])
    owner = cluster.owner()
    fields |= {
        "id": json.dumps(job_id),
        "owner": json.dumps(owner),
        "created_at": json.dumps(time.time()),
        "callback": json.dumps({"url": cluster.receiver.url, "events": ["video.completed", "video.failed"]}),
    }
    injection.record(victim=job_id)
    redis: Any = cluster.redis
    with redis.pipeline() as pipe:
        pipe.hset(job_key(job_id), mapping=fields)
        for index in (INDEX, owner_index(owner)):
            pipe.zadd(index, {job_id: 0})
        for members in (waiting_key(owner), ACTIVE):
            pipe.sadd(members, job_id)
        for command in recorded_generate(generate_queue(redis, "demo"), job_id):
            pipe.execute_command(*command)
        pipe.execute()
    yield 0.0
