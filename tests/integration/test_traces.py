"""One OpenTelemetry trace follows a video through API, queue, worker and webhook, which are separate processes."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.errors import ConfigurationError
from service.jobs.model import JobState
from service.settings import Settings
from service.tracing import NO_TRACING, Tracing, current_traceparent
from service.webhook_dispatcher.attempt import AttemptRunner
from service.webhook_dispatcher.metrics import DispatcherMetrics
from service.wiring import Services, open_services
from tests.factories import PROMPT, deliver_webhooks, finish
from tests.job_waits import reaches
from tests.otlp_receiver import OtlpReceiver
from tests.processes import worker
from tests.quick_app import quick_app
from tests.webhook_receivers import Receiver

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture
def settings(settings: Settings, collector: OtlpReceiver) -> Settings:
    return settings.model_copy(
        update={"otlp_endpoint": collector.url, "webhook_allow": ("127.0.0.0/8",), "webhook_allow_http": True}
    )


@pytest.fixture
def services(settings: Settings) -> Iterator[Services]:
    opened = open_services(settings, "api")
    yield opened
    opened.close()


def test_one_trace_from_the_request_to_the_webhook(services: Services, collector: OtlpReceiver, tmp_path: Path) -> None:
    """The worker is a separate process; the only thing that it shares with the API is Redis."""
    settings = services.settings
    environment = {
        "IVMIX_REDIS_URL": services.redis_url,
        "IVMIX_DATA_DIR": str(settings.data_dir),
        "IVMIX_OTLP_ENDPOINT": collector.url,
        "FAKE_STEP_S": "0.01",
    }
    with Receiver() as receiver, TestClient(quick_app(services)) as client:
        body = {"prompt": PROMPT, "callback_url": f"{receiver.url}/secret-path", "num_inference_steps": 4}
        made = client.post("/v1/videos", json=body, headers={"traceparent": CLIENT}).json()
        client.get(f"/v1/videos/{made['id']}")
        with worker(environment, "tests.fake_worker") as process:
            reaches(services, made["id"], JobState.COMPLETED)
            process.terminate()
            assert process.wait(30) == 0
        ended = services.store.get(made["id"])
        assert ended is not None
        assert ended.gpu_ms >= 40  # four steps of 10 ms
        runner = AttemptRunner(settings, services.webhooks, DispatcherMetrics(), services.tracing)
        deliver_webhooks(services, runner)
        (received,) = receiver.received
    services.tracing.close()
    spans = {span.name: span for span in collector.spans}
    assert {span.trace for span in collector.spans} == {CLIENT.split("-")[1]}
    request, queue, execution, webhook = (spans[name] for name in ("POST /v1/videos", "queue", "execution", "webhook"))
    assert request.parent == CLIENT.split("-")[2]
    assert {queue.parent, execution.parent, webhook.parent} == {request.span}
    phases = [spans[name] for name in ("encoding", "sampling", "decoding", "uploading")]
    assert {phase.parent for phase in phases} == {execution.span}
    assert [phase.start_ns for phase in phases] == sorted(phase.start_ns for phase in phases)
    assert {span.parent for span in collector.named("storage put")} == {spans["uploading"].span}
    assert queue.start_ns < queue.end_ns <= execution.start_ns < execution.end_ns
    assert (request.process, execution.process) == ("ivmix-api", "ivmix-worker")
    assert execution.attributes["ivmix.video_id"] == made["id"]
    assert execution.attributes["ivmix.outcome"] == "completed"
    assert webhook.attributes["http.response.status_code"] == 204
    assert received.headers["traceparent"].split("-")[1:3] == [webhook.trace, webhook.span]
    assert not any(text in body for body in collector.bodies for text in (PROMPT.encode(), b"secret-path"))


def test_polls_are_not_traced_and_errors_are(services: Services, collector: OtlpReceiver) -> None:
    with TestClient(quick_app(services), raise_server_exceptions=False) as client:
        client.get("/v1/videos")
        client.post("/v1/videos", json={"prompt": "a horse"})
    services.tracing.close()
    (span,) = collector.spans
    assert (span.attributes["http.response.status_code"], span.is_error) == (400, False)


def test_an_absent_receiver_stops_nothing(settings: Settings, tmp_path: Path) -> None:
    services = open_services(settings.model_copy(update={"otlp_endpoint": "http://127.0.0.1:9"}))
    with TestClient(quick_app(services)) as client:
        made = client.post("/v1/videos", json={"prompt": PROMPT}).json()
        assert made["status"] == "queued"
    finish(services, made["id"], b"video", scratch=tmp_path)
    services.close()


def test_without_the_setting_the_libraries_need_not_be_there(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.setitem(sys.modules, name, None)
    off = dataclasses.replace(services, tracing=Tracing(None, "api"))
    with TestClient(quick_app(off)) as client:
        made = client.post("/v1/videos", json={"prompt": PROMPT}, headers={"traceparent": CLIENT}).json()
    with NO_TRACING.span("x", parent=CLIENT) as span:
        assert (span.traceparent, current_traceparent()) == (None, None)
    assert not services.redis.hexists(f"ivm:job:{made['id']}", "traceparent")
    monkeypatch.undo()


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigurationError, match=r"ivmix\[otel\]"):
        Tracing("http://127.0.0.1:4318", "api")
