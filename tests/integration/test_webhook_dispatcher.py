"""The dispatcher as a separate process, `ivmix webhooks`: killed and stopped at the wrong moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx2
import pytest

from service.jobs.outbox import OUTBOX
from service.jobs.rq_queues import generate_queue
from service.settings import Settings
from service.webhook_dispatcher.attempt import AttemptRunner
from service.webhook_dispatcher.dispatcher import POLL_S, run
from service.webhooks.deliveries import DUE, Delivery
from service.webhooks.retry_policy import State
from service.wiring import Services, open_services
from tests.child_processes import ends_with_tests
from tests.factories import make_job
from tests.ports import free_port
from tests.processes import PROMPT, clean_environment, ivmix_up, wait_for
from tests.valkey import Valkey
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
def dispatcher(environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "webhooks"],
        env={**clean_environment(), **environment},
        start_new_session=True,
        preexec_fn=ends_with_tests(),
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
    """Let every attempt in progress count as lost."""
    for delivery in deliveries(services):
        if delivery.state is State.PENDING:
            services.redis.hset(f"ivm:webhook:delivery:{delivery.id}", "taken_until", "1")
            services.redis.zadd(DUE, {delivery.id: 1})
    for busy in services.redis.keys("ivm:webhook:busy:*"):
        services.redis.delete(busy)


def all_delivered(services: Services, count: int) -> bool | None:
    states = [delivery.state for delivery in deliveries(services)]
    return (len(states) == count and set(states) == {State.DELIVERED}) or None


def test_webhooks_arrive_and_a_rejected_one_is_retried(services: Services, environment: dict[str, str]) -> None:
    with Receiver(status(500), status(503), status(204)) as receiver, dispatcher(environment) as process:
        listen(services, receiver)
        end_a_job(services)
        receiver.wait(3)
        wait_for(lambda: all_delivered(services, 1), timeout_s=120)
        assert {got.headers["webhook-id"] for got in receiver.received} == {deliveries(services)[0].id}
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0


def test_a_dispatcher_serves_its_metrics(services: Services, environment: dict[str, str]) -> None:
    port = free_port()

    def delivered() -> bool:
        try:
            text = httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        except httpx2.TransportError:
            return False
        return 'ivmix_webhook_deliveries_total{result="delivered"} 1.0' in text

    with Receiver() as receiver, dispatcher(environment | {"IVMIX_WEBHOOK_METRICS_PORT": str(port)}):
        listen(services, receiver)
        end_a_job(services)
        wait_for(delivered, timeout_s=150)


def test_what_ended_while_no_dispatcher_ran_is_delivered_by_the_next_one(
    services: Services, environment: dict[str, str]
) -> None:
    with Receiver() as receiver:
        listen(services, receiver)
        for _ in range(5):
            end_a_job(services)
        assert services.redis.xlen(OUTBOX) == 5
        with dispatcher(environment):
            receiver.wait(5)
            wait_for(lambda: all_delivered(services, 5), timeout_s=120)
        assert len(receiver.received) == 5


def test_a_dispatcher_killed_during_an_attempt_loses_nothing(services: Services, environment: dict[str, str]) -> None:
    with Receiver(raw(b"", pause_s=300), status(204)) as receiver:
        listen(services, receiver)
        with dispatcher(environment) as process:
            end_a_job(services)
            receiver.wait(1)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        (held,) = deliveries(services)
        assert (held.state, held.attempts) == (State.PENDING, 1)
        assert held.taken_until is not None
        assert services.redis.zscore(DUE, held.id) == pytest.approx(held.taken_until)
        let_time_pass(services)
        with dispatcher(environment):
            receiver.wait(2)
            wait_for(lambda: all_delivered(services, 1), timeout_s=120)
        assert {got.headers["webhook-id"] for got in receiver.received} == {held.id}


def test_dispatchers_killed_at_random_while_jobs_end_deliver_every_event_at_least_once(
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
            with dispatcher(environment) as process:
                seen = len(receiver.received)
                receiver.wait(min(seen + 1, jobs))
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            let_time_pass(services)
        ending.join()
        let_time_pass(services)
        with dispatcher(environment):
            wait_for(lambda: all_delivered(services, jobs), timeout_s=120)
        assert {got.headers["webhook-id"] for got in receiver.received} == {d.id for d in deliveries(services)}


def test_a_slow_receiver_does_not_delay_the_others(services: Services, environment: dict[str, str]) -> None:
    slow_for_longer = environment | {"IVMIX_WEBHOOK_TIMEOUT_S": "30"}
    with Receiver(raw(b"", pause_s=300)) as slow, Receiver() as quick:
        listen(services, slow)
        with dispatcher(slow_for_longer):
            for _ in range(4):
                end_a_job(services)
            slow.wait(1)
            listen(services, quick)
            end_a_job(services)
            quick.wait(1)
            # Each of its attempts takes 30 s; without a limit per host they would occupy all three threads.
            assert len(slow.received) <= 2


def test_no_more_is_claimed_than_can_start_at_once(services: Services, environment: dict[str, str]) -> None:
    """What waits can be taken by another dispatcher."""
    slow_for_longer = environment | {"IVMIX_WEBHOOK_TIMEOUT_S": "30"}
    with ExitStack() as stack:
        hosts = [stack.enter_context(Receiver(raw(b"", pause_s=300))) for _ in range(5)]
        for host in hosts:
            listen(services, host)
        with dispatcher(slow_for_longer):
            end_a_job(services)
            wait_for(lambda: sum(len(host.received) for host in hosts) == 2 or None, timeout_s=120)
            time.sleep(2 * POLL_S)
            waiting = {delivery.id for delivery in deliveries(services) if delivery.attempts == 0}
            assert len(waiting) == 3, "two of three threads for one owner"
            assert {claim.delivery_id for claim in services.webhooks.deliveries.claim(16)} == waiting


def test_a_stop_finishes_the_attempt_in_progress_and_starts_no_other(
    services: Services, environment: dict[str, str]
) -> None:
    answer_now = threading.Event()

    def late(handler: BaseHTTPRequestHandler) -> None:
        answer_now.wait(60)
        status(204)(handler)

    with Receiver(late) as receiver, dispatcher(environment) as process:
        listen(services, receiver)
        end_a_job(services)
        receiver.wait(1)
        process.send_signal(signal.SIGTERM)
        time.sleep(2 * POLL_S)
        end_a_job(services)
        assert process.poll() is None
        answer_now.set()
        assert process.wait(120) == 0
        (delivered,) = deliveries(services)
        assert (delivered.state, len(receiver.received)) == (State.DELIVERED, 1)
        assert services.redis.xlen(OUTBOX) == 1


def test_a_dispatcher_survives_an_outage_of_redis(tmp_path, environment: dict[str, str]) -> None:
    with Valkey(tmp_path / "valkey") as valkey, Receiver() as receiver:
        services = open_services(Settings(redis_url=valkey.url, data_dir=tmp_path / "data", auth="off"))
        listen(services, receiver)
        with dispatcher(environment | {"IVMIX_REDIS_URL": valkey.url}) as process:
            end_a_job(services)
            receiver.wait(1)
            wait_for(lambda: all_delivered(services, 1), timeout_s=120)
            valkey.kill()
            time.sleep(3)
            assert process.poll() is None
            valkey.start()
            end_a_job(services)
            receiver.wait(2)
            wait_for(lambda: all_delivered(services, 2), timeout_s=120)
        services.close()


def test_a_stop_during_an_outage_of_redis_ends_the_process(tmp_path, environment: dict[str, str]) -> None:
    with Valkey(tmp_path / "valkey") as valkey, Receiver() as receiver:
        services = open_services(Settings(redis_url=valkey.url, data_dir=tmp_path / "data", auth="off"))
        listen(services, receiver)
        with dispatcher(environment | {"IVMIX_REDIS_URL": valkey.url}) as process:
            end_a_job(services)
            receiver.wait(1)
            valkey.kill()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        services.close()


def test_an_attempt_that_fails_with_a_bug_concerns_only_its_own_delivery(
    services: Services, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stopping = threading.Event()

    def fail(*_: object) -> None:
        stopping.set()
        raise ZeroDivisionError

    monkeypatch.setattr(AttemptRunner, "run", fail)
    with Receiver() as receiver:
        listen(services, receiver)
        end_a_job(services)
        run(services, stopping)
    assert "attempt failed with an internal error" in caplog.text
    assert deliveries(services)[0].state is State.PENDING


def test_a_dispatcher_with_a_dead_thread_exits_with_the_reason(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(AttemptRunner, "run", die)
    with Receiver() as receiver:
        listen(services, receiver)
        end_a_job(services)
        with pytest.raises(RuntimeError, match="a webhook thread ended unexpectedly") as ended:
            run(services, threading.Event())
    assert isinstance(ended.value.__cause__, SystemExit)


def test_ivmix_up_delivers_too(tmp_path: Path) -> None:
    """The processes that one command starts deliver the final state of a video to a real receiver."""
    allowed = {"IVMIX_WEBHOOK_ALLOW": "127.0.0.0/8", "IVMIX_WEBHOOK_ALLOW_HTTP": "true"}
    with (
        Receiver() as receiver,
        ivmix_up(tmp_path, "--workers", "0", **allowed) as (_, url),
        httpx2.Client(base_url=url, timeout=60) as http,
    ):
        secret = http.get("/v1/webhook_callback_secret").json()["signing_secret"]
        video = http.post("/v1/videos", json={"prompt": PROMPT, "callback_url": receiver.url}).json()
        http.post(f"/v1/videos/{video['id']}/cancel").raise_for_status()
        (got,) = receiver.wait(1)
        event = got.event(secret)
        assert (event.type, event.data.id) == ("video.failed", video["id"])
