"""RQ changes the methods that worker/parent/rq_worker.py overrides between minor versions; these tests notice."""

import inspect
import re

import pytest
from redis import Redis
from rq import Queue, SimpleWorker
from rq.job import Job
from rq.timeouts import BaseDeathPenalty
from rq.worker.base import BaseWorker

from service.jobs.rq_queues import TrustedJob, generate_queue, queue_key, send_generate
from worker.parent.rq_worker import GenerationWorker, StoppableQueue


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (BaseWorker, "heartbeat", ["self", "timeout", "pipeline"]),
        (BaseWorker, "maintain_heartbeats", ["self", "job", "execution"]),
        (BaseWorker, "set_state", ["self", "state", "pipeline"]),
        (BaseWorker, "serialize", ["self"]),
        (SimpleWorker, "get_heartbeat_ttl", ["self", "job", "working_time"]),
        (BaseWorker, "perform_job", ["self", "job", "queue", "execution"]),
        (BaseWorker, "prepare_job_execution", ["self", "job", "remove_from_intermediate_queue"]),
        (BaseWorker, "cleanup_execution", ["self", "job", "pipeline", "execution"]),
        (BaseWorker, "run_maintenance_tasks", ["self"]),
        (BaseWorker, "subscribe", ["self"]),
        (BaseWorker, "_shutdown", ["self"]),
        (BaseWorker, "request_force_stop", ["self", "signum", "frame"]),
        (BaseWorker, "_install_signal_handlers", ["self"]),
        (BaseDeathPenalty, "setup_death_penalty", ["self"]),
        (BaseDeathPenalty, "cancel_death_penalty", ["self"]),
    ],
)
def test_overridden_methods_have_the_signature_we_override(owner: type, name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


def test_every_override_still_exists_in_rq() -> None:
    for ours, theirs in (
        (GenerationWorker, SimpleWorker),
        (StoppableQueue, Queue),
        (TrustedJob, Job),
    ):
        own = {"is_draining", "must_stop", "beat", "close_entry", "worker"}  # ours, overriding nothing
        overrides = {n for n in vars(ours) if not n.startswith("__") and n not in own}
        assert overrides <= set(dir(theirs)), overrides - set(dir(theirs))


def test_the_worker_takes_jobs_through_the_queue_class() -> None:
    assert "self.queue_class.dequeue_any(" in inspect.getsource(BaseWorker.dequeue_job_and_maintain_ttl)
    assert "self._stop_requested" in inspect.getsource(BaseWorker.work)
    assert "func_name" in dir(Job)


def test_a_simple_worker_does_to_a_job_what_we_override_and_no_more() -> None:
    source = inspect.getsource(SimpleWorker.execute_job)
    calls = re.findall(r"self\.(\w+)\(", source)
    assert calls == ["prepare_execution", "perform_job", "set_state"]


def test_rq_reports_which_entry_it_could_not_read(valkey: str) -> None:
    queue = generate_queue(Redis.from_url(valkey), "demo")
    send_generate(queue, "video_1")
    queue.connection.hset("rq:job:video_1", "created_at", "garbage")
    with pytest.raises(ValueError, match="garbage") as raised:
        Queue.dequeue_any([queue], timeout=None, connection=queue.connection, serializer="json")
    assert (raised.value.job_id, raised.value.queue) == ("video_1", queue)  # type: ignore[attr-defined]


def test_rq_queues_jobs_under_the_keys_that_we_read() -> None:
    """The lost-job reaper searches these lists for job ids."""
    queue = Queue("gpu-demo", connection=Redis())
    assert (queue.key, queue.intermediate_queue_key) == (queue_key("demo"), f"{queue_key('demo')}:intermediate")
    assert "blmove(queue_key, intermediate_queue.key" in inspect.getsource(Queue.lmove)
