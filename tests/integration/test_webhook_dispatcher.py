"""The courier as a process of its own: `ivmix webhooks`, killed and stopped at the wrong moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx2
import pytest

from service.jobs.outbox import OUTBOX
from service.jobs.rq_queues import DELIVER, generate_queue, webhooks_queue
from service.process.embedded_valkey import free_port
from service.settings import Settings
from service.webhook_dispatcher.dispatcher import run
from service.webhooks.deliveries import DUE, Delivery
from service.webhooks.retry_policy import State
from service.wiring import Services
from tests.factories import make_job
from tests.processes import PROMPT, clean_environment, ivmix_up, wait_for
from tests.webhook_receivers import Receiver, raw, status


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    assert settings.redis_url is not None
    return {
        "IVMIX_REDIS_URL": settings.redis_url,
        "IVMIX_DATA_DIR": str(settings.data_dir),
        "IVMIX_WEBHOOK_ALLOW": "127.0.0.0/8",
        "IVMIX_WEBHOOK_ALLOW_HTTP": "true",
        "IVMIX_WEBHOOK_RETRY_DELAYS_S": "0.2,0.2,0.2",
        "IVMIX_WEBHOOK_CONCURRENCY": "3",
    }


@contextmanager
def courier(environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "webhooks"],
        env={**clean_environment(), **environment},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def end_a_job(services: Services) -> None:
    job = services.store.create(make_job(), generate_queue(services.redis, "demo"))
    services.store.cancel(job.id)


def listen(services: Services, receiver: Receiver) -> None:
    services.webhooks.endpoints.create(
        "local", name="test", url=receiver.url, event_types=("video.completed", "video.failed")
    )


def deliveries(services: Services) -> list[Delivery]:
    return services.webhooks.deliveries.list("local", limit=100)[0]


def let_time_pass(services: Services) -> None:
    """So long that every attempt under way counts as lost."""
    for delivery in deliveries(services):
        if delivery.state is State.PENDING:
            services.redis.hset(f"ivm:webhook:delivery:{delivery.id}", "taken_until", "1")
            services.redis.zadd(DUE, {delivery.id: 1})
    for busy in services.redis.keys("ivm:webhook:busy:*"):
        services.redis.delete(busy)


def all_delivered(services: Services, count: int) -> bool | None:
    states = [delivery.state for delivery in deliveries(services)]
    return (len(states) == count and set(states) == {State.DELIVERED}) or None


def test_webhooks_arrive_and_a_refused_one_comes_again(services: Services, environment: dict[str, str]) -> None:
    with Receiver(status(500), status(503), status(204)) as receiver, courier(environment) as process:
        listen(services, receiver)
        end_a_job(services)
        receiver.wait(3)
        wait_for(lambda: all_delivered(services, 1), timeout_s=120)
        assert {got.headers["webhook-id"] for got in receiver.received} == {deliveries(services)[0].id}
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0


def test_a_courier_serves_its_figures(services: Services, environment: dict[str, str]) -> None:
    port = free_port()

    def delivered() -> bool:
        try:
            text = httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        except httpx2.TransportError:
            return False
        return 'ivmix_webhook_deliveries_total{result="delivered"} 1.0' in text

    with Receiver() as receiver, courier(environment | {"IVMIX_WEBHOOK_METRICS_PORT": str(port)}):
        listen(services, receiver)
        end_a_job(services)
        wait_for(delivered, timeout_s=150)


def test_what_ended_while_no_courier_ran_is_told_by_the_next_one(
    services: Services, environment: dict[str, str]
) -> None:
    with Receiver() as receiver:
        listen(services, receiver)
        for _ in range(5):
            end_a_job(services)
        assert services.redis.xlen(OUTBOX) == 5
        with courier(environment):
            receiver.wait(5)
            wait_for(lambda: all_delivered(services, 5), timeout_s=120)
        assert len(receiver.received) == 5


def test_a_courier_killed_in_the_middle_of_an_attempt_loses_nothing(
    services: Services, environment: dict[str, str]
) -> None:
    with Receiver(raw(b"", pause_s=300), status(204)) as receiver:
        listen(services, receiver)
        with courier(environment) as process:
            end_a_job(services)
            receiver.wait(1)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        (held,) = deliveries(services)
        assert (held.state, held.attempts) == (State.PENDING, 1)
        assert held.taken_until is not None
        assert services.redis.zscore(DUE, held.id) == pytest.approx(held.taken_until)
        let_time_pass(services)
        with courier(environment):
            receiver.wait(2)
            wait_for(lambda: all_delivered(services, 1), timeout_s=120)
        assert {got.headers["webhook-id"] for got in receiver.received} == {held.id}


def test_couriers_killed_at_random_while_jobs_end_tell_every_end_at_least_once(
    services: Services, environment: dict[str, str]
) -> None:
    jobs = 12
    with Receiver() as receiver:
        listen(services, receiver)

        def end_jobs() -> None:
            for _ in range(jobs):
                end_a_job(services)
                time.sleep(0.1)

        ending = threading.Thread(target=end_jobs)
        ending.start()
        for _ in range(2):
            with courier(environment) as process:
                seen = len(receiver.received)
                receiver.wait(min(seen + 1, jobs))
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        ending.join()
        let_time_pass(services)
        with courier(environment):
            wait_for(lambda: all_delivered(services, jobs), timeout_s=120)
        assert {got.headers["webhook-id"] for got in receiver.received} == {d.id for d in deliveries(services)}


def test_a_slow_receiver_does_not_delay_the_others(services: Services, environment: dict[str, str]) -> None:
    slow_for_longer = environment | {"IVMIX_WEBHOOK_TIMEOUT_S": "30"}
    with Receiver(raw(b"", pause_s=300)) as slow, Receiver() as quick:
        listen(services, slow)
        with courier(slow_for_longer):
            for _ in range(4):
                end_a_job(services)
            slow.wait(1)
            listen(services, quick)
            end_a_job(services)
            quick.wait(1)
            # Each of its attempts takes 30 s; without a share it would have got all three workers at once.
            assert len(slow.received) <= 2


def test_a_name_that_is_not_ours_is_not_called(services: Services, environment: dict[str, str]) -> None:
    queue = webhooks_queue(services.redis)
    job = queue.enqueue("os.system", "exit 1")
    with courier(environment), Receiver() as receiver:
        listen(services, receiver)
        end_a_job(services)
        receiver.wait(1)
        wait_for(lambda: job.get_status(refresh=True) == "failed" or None, timeout_s=120)
    result = job.latest_result()
    assert result is not None
    assert "not a function we run" in str(result.exc_string)
    assert DELIVER not in str(result.exc_string)


def test_a_courier_whose_workers_have_died_ends_instead_of_looking_busy(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.webhook_dispatcher.dispatcher.work", lambda *_: None)
    with pytest.raises(RuntimeError, match="a worker has ended by itself"):
        run(services, threading.Event())


def test_ivmix_up_delivers_too(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real video of the demo models, told to a real receiver by what one command started."""
    monkeypatch.setattr(
        "tests.processes.clean_environment",
        lambda: {
            **{k: v for k, v in os.environ.items() if not k.startswith("IVMIX_")},
            "IVMIX_WEBHOOK_ALLOW": "127.0.0.0/8",
            "IVMIX_WEBHOOK_ALLOW_HTTP": "true",
        },
    )
    with Receiver() as receiver, ivmix_up(tmp_path) as (_, url), httpx2.Client(base_url=url, timeout=60) as http:
        secret = http.get("/v1/webhook_callback_secret").json()["signing_secret"]
        body = {"prompt": PROMPT, "num_inference_steps": 2, "callback_url": receiver.url}
        video = http.post("/v1/videos", json=body).json()
        (got,) = receiver.wait(1, timeout_s=200)
        event = got.event(secret)
        assert (event.type, event.data.id) == ("video.completed", video["id"])
