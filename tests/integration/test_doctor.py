"""`ivmix doctor` names what is wrong with a set-up, and only that."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rq import Worker

from service.doctor.configuration import check_environment_proxy, check_traces
from service.doctor.examination import examine_settings
from service.doctor.finding import Finding, Severity
from service.doctor.machine import check_packages
from service.jobs.rq_queues import generate_queue
from service.maintenance.leader import LEADER
from service.settings import Settings
from service.tracing import Tracing
from service.wiring import Services, open_services
from tests.broken_set_ups import CASES, Break, other_program
from tests.commands import ivmix_here
from tests.otlp_receiver import OtlpReceiver
from tests.ports import free_port
from tests.processes import clean_environment


@pytest.fixture
def settings(valkey: str, tmp_path: Path) -> Settings:
    """A set-up without a fault, on a port that is free."""
    return Settings(redis_url=valkey, data_dir=tmp_path / "data", port=free_port(), min_free_mb=1, auth="keys")


@pytest.fixture
def healthy(settings: Settings) -> Iterator[Services]:
    """What the processes of a running service leave in Redis."""
    services = open_services(settings)
    services.keys.create("a client")
    with running(services):
        yield services
    services.close()


@contextmanager
def running(services: Services) -> Generator[None]:
    """A worker is registered, and a maintenance process leads."""
    services.redis.set(LEADER, "1", px=60_000)
    queue: Any = generate_queue(services.redis, "demo")
    worker: Any = Worker([queue], connection=services.redis, serializer="json")
    worker.register_birth()
    worker.heartbeat(45)
    yield


def faults(findings: Iterator[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity is not Severity.OK]


def test_a_set_up_without_a_fault_has_no_findings(healthy: Services) -> None:
    found = list(examine_settings(healthy.settings))
    assert faults(iter(found)) == []
    names = {"redis", "persistence", "memory", "clock", "storage", "models", "workers", "maintenance", "API keys"}
    assert names <= {finding.check for finding in found}


@pytest.mark.parametrize(
    ("broken", "check", "severity", "words"), CASES, ids=lambda value: getattr(value, "__name__", "")
)
def test_each_fault_is_named(
    broken: Break, check: str, severity: Severity, words: str, healthy: Services, tmp_path: Path
) -> None:
    with broken(healthy, tmp_path) as settings:
        found = faults(examine_settings(settings))
    named = [finding for finding in found if finding.check == check]
    assert [finding.severity for finding in named] == [severity], found
    assert words in named[0].message
    assert all("secret" not in finding.message or check == "signing secret" for finding in found)


def test_clocks_that_differ_are_named(healthy: Services) -> None:
    redis: Any = healthy.redis
    (worker,) = [key.decode() for key in redis.smembers("rq:workers:gpu-demo")]
    redis.hset(worker, "last_heartbeat", "2030-01-01T00:00:00.000000Z")
    found = faults(examine_settings(healthy.settings, now=lambda: time.time() + 120))
    redis_clock, worker_clock = (finding for finding in found if finding.check == "clock")
    assert "Redis' clock is 120 s behind this machine's" in redis_clock.message
    assert worker.removeprefix("rq:worker:") in worker_clock.message
    assert "ahead of" in worker_clock.message


def test_storages_that_cannot_be_used_are_named(s3: Settings) -> None:
    def named(**changes: Any) -> dict[str, tuple[Severity, str]]:
        changed = s3.model_copy(update={"auth": "off", "port": 0, **changes})
        return {finding.check: (finding.severity, finding.message) for finding in examine_settings(changed)}

    whole = named()
    assert (whole["storage"][0], whole["download URL"][0]) == (Severity.OK, Severity.OK)
    severity, message = named(s3_bucket="absent")["storage"]
    assert (severity, "IVMIX_S3_BUCKET does not exist" in message) == (Severity.PROBLEM, True)
    severity, message = named(s3_endpoint_url=f"http://127.0.0.1:{free_port()}")["storage"]
    assert severity is Severity.PROBLEM
    with other_program() as port:
        severity, message = named(s3_public_endpoint_url=f"http://127.0.0.1:{port}")["download URL"]
    assert (severity, "answered with 404" in message) == (Severity.PROBLEM, True)


def test_the_proxy_of_the_environment_is_named(s3: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@proxy.example.com:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    (finding,) = check_environment_proxy(s3)
    assert (finding.severity, finding.advice) == (Severity.PROBLEM, "add 127.0.0.1 to NO_PROXY")
    assert "secret" not in finding.message
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (finding,) = check_environment_proxy(s3)
    assert finding.severity is Severity.OK


def test_the_receiver_of_traces_is_asked_as_spans_are_sent(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20token")
    with OtlpReceiver() as receiver:
        (finding,) = check_traces(settings.model_copy(update={"otlp_endpoint": receiver.url}))
        tracing = Tracing(receiver.url)
        tracing.start("a span").end()
        tracing.close()
    assert (finding.severity, receiver.tokens) == (Severity.OK, ["Bearer token"] * 2)


def test_an_untested_library_is_named(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("redis==1.0\nboto3==0.9\n")
    (finding,) = check_packages(tmp_path / "constraints.txt")
    assert (finding.severity, "redis" in finding.message, "instead of 1.0" in finding.message) == (
        Severity.WARNING,
        True,
        True,
    )


def test_a_library_that_is_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "redis-3.0.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: redis\nVersion: 3.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (finding,) = check_packages(tmp_path / "absent")
    assert (finding.severity, "redis 3.0 is not" in finding.message) == (Severity.PROBLEM, True)


def run(tmp_path: Path, *arguments: str, **environment: str) -> Any:
    return ivmix_here("doctor", *arguments, cwd=tmp_path, environment=clean_environment() | environment)


def test_the_command_prints_a_line_per_check_and_ends_with_1(healthy: Services, tmp_path: Path) -> None:
    settings = healthy.settings
    common = {"IVMIX_DATA_DIR": str(settings.data_dir), "IVMIX_REDIS_URL": settings.redis_url or ""}
    common |= {"IVMIX_PORT": str(settings.port), "IVMIX_MIN_FREE_MB": "1", "IVMIX_AUTH": "keys"}
    ran = run(tmp_path, "--json", **common)
    report = json.loads(ran.stdout)
    assert (ran.returncode, report["ok"]) == (0, True), ran.stdout
    assert {"encoder", "packages", "redis"} <= {check["check"] for check in report["checks"]}
    healthy.redis.delete("ivm:keys")
    ran = run(tmp_path, **common)
    assert ran.returncode == 1
    assert "problem  API keys: there is no API key" in ran.stdout
    assert "ivmix keys create --name NAME" in ran.stdout


def test_settings_that_are_wrong_are_a_finding(tmp_path: Path) -> None:
    ran = run(tmp_path, "--json", IVMIX_DATA_DIR=str(tmp_path), IVMIX_PORT="http")
    (wrong,) = [check for check in json.loads(ran.stdout)["checks"] if check["severity"] == "problem"]
    assert (ran.returncode, wrong["check"], "IVMIX_PORT" in wrong["message"]) == (1, "settings", True)
