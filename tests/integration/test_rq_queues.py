from __future__ import annotations

import json
import sys
import zlib

import pytest
from redis import Redis
from rq import Queue, SimpleWorker
from rq.job import Job as RqJob

from service.jobs.rq_queues import GENERATE, RQ_RECORD_TTL_S, TrustedJob, generate_queue, queue_key, send_generate


@pytest.fixture
def queue(valkey: str) -> Queue:
    return generate_queue(Redis.from_url(valkey), "demo", job_timeout_s=77)


def test_work_travels_as_a_name_and_an_id_in_json(queue: Queue) -> None:
    send_generate(queue, "video_1")
    data = queue.connection.hget("rq:job:video_1", "data")
    assert json.loads(zlib.decompress(data)) == [GENERATE, None, ["video_1"], {}]


def test_the_rq_entry_has_our_id_and_timeout_and_expires(queue: Queue) -> None:
    send_generate(queue, "video_1")
    job = RqJob.fetch("video_1", connection=queue.connection, serializer="json")
    assert (job.timeout, job.result_ttl, job.failure_ttl) == (77, RQ_RECORD_TTL_S, RQ_RECORD_TTL_S)
    assert job.retries_left is None


def test_each_model_has_a_separate_queue(queue: Queue) -> None:
    other = generate_queue(queue.connection, "other")
    send_generate(queue, "video_1")
    assert (queue.name, queue.job_ids, other.job_ids) == ("gpu-demo", ["video_1"], [])
    assert queue.connection.lrange(queue_key("demo"), 0, -1) == [b"video_1"]


def test_work_can_go_to_the_front(queue: Queue) -> None:
    send_generate(queue, "video_1")
    send_generate(queue, "video_2", at_front=True)
    assert queue.job_ids == ["video_2", "video_1"]


def test_nothing_is_sent_before_the_transaction_is_executed(queue: Queue) -> None:
    with queue.connection.pipeline(transaction=True) as pipe:
        send_generate(queue, "video_1", pipeline=pipe)
        assert queue.job_ids == []
        pipe.execute()
    assert queue.job_ids == ["video_1"]


@pytest.mark.parametrize("timeout", [0, -1])
def test_a_job_must_have_an_end(queue: Queue, timeout: int) -> None:
    with pytest.raises(ValueError, match="job_timeout_s"):
        generate_queue(queue.connection, "demo", job_timeout_s=timeout)


def test_sending_does_not_import_the_worker(queue: Queue) -> None:
    assert GENERATE.partition(".")[0] == "worker"
    loaded = set(sys.modules)
    send_generate(queue, "video_1")
    assert "worker.tasks" not in set(sys.modules) - loaded


def test_an_rq_worker_reads_the_entry(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the function is replaced by one that needs no GPU; RQ does everything from queue to call."""
    monkeypatch.setattr("service.jobs.rq_queues.GENERATE", "tests.integration.test_rq_queues.note")
    noted.clear()
    send_generate(queue, "video_1")
    SimpleWorker([queue], connection=queue.connection, serializer="json").work(burst=True)
    assert noted == ["video_1"]


def test_a_job_that_names_another_function_is_not_run(queue: Queue) -> None:
    """Anyone who can write to Redis could enqueue one."""
    noted.clear()
    job = queue.enqueue("tests.integration.test_rq_queues.note", "video_1")
    SimpleWorker([queue], connection=queue.connection, serializer="json", job_class=TrustedJob).work(burst=True)
    assert noted == []
    assert job.get_status(refresh=True) == "failed"
    result = job.latest_result()
    assert result is not None
    assert "is not allowed" in str(result.exc_string)


noted: list[str] = []


def note(job_id: str) -> None:
    noted.append(job_id)
