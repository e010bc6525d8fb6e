"""Queue report, metrics, health on the metrics port, and CORS."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from service.api.app import create_app
from service.api_keys import Scope
from service.catalog.optimise import Optimise
from service.jobs.rq_queues import generate_queue
from service.settings import Settings
from service.webhook_dispatcher.metrics import DispatcherMetrics
from service.wiring import Services
from tests.api_calls import create
from tests.child_processes import ends_with_tests
from tests.doc_examples import DOCS
from tests.factories import PROMPT, make_job
from tests.ports import free_port
from tests.processes import clean_environment, wait_for, worker


def figures(text: str) -> dict[tuple[str, ...], float]:
    """(name, label value ..) -> value"""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class TestQueueReport:
    def test_an_idle_queue_without_workers_has_no_estimates(self, client: TestClient) -> None:
        assert client.get("/v1/queue").json() == {
            "object": "queue",
            "data": [
                {
                    "model": "demo",
                    "queued": 0,
                    "running": 0,
                    "workers": [],
                    "videos_per_hour": 0.0,
                    "seconds_per_video": None,
                    "estimated_wait_s": None,
                    "unavailable": None,
                }
            ],
        }

    def test_a_real_worker_is_seen_at_its_work(self, client: TestClient, services: Services) -> None:
        queue = generate_queue(services.redis, "demo")
        generation = make_job().generation.model_copy(update={"num_inference_steps": 1})
        quick = services.store.create(make_job(generation=generation), queue)
        long = services.store.create(
            make_job(generation=generation.model_copy(update={"num_inference_steps": 400})), queue
        )
        waiting = create(client)["id"]

        def busy() -> dict[str, Any] | None:
            """The second video is sampled while the first is still decoded and stored, so wait for both."""
            [model] = client.get("/v1/queue").json()["data"]
            if not model["videos_per_hour"]:
                return None
            return next((model for at in model["workers"] if at["video_id"] == long.id and at["step"]), None)

        environment = {
            "IVMIX_REDIS_URL": str(services.settings.redis_url),
            "IVMIX_DATA_DIR": str(services.settings.data_dir),
            "FAKE_STEP_S": "0.1",
        }
        with worker(environment, "tests.fake_worker"):
            model = wait_for(busy, timeout_s=120)
            [at] = model["workers"]
            assert (model["queued"], model["running"], model["videos_per_hour"]) == (1, 1, 1)
            assert (at["state"], at["total_steps"], at["phase"]) == ("busy", 400, "sampling")
            assert at["configuration"] == {"source": "tuned", "optimise": Optimise(compile=True).model_dump()}
            assert model["seconds_per_video"] > 0
            assert model["estimated_wait_s"] > model["seconds_per_video"]  # one runs, one waits
            running = figures(client.get("/metrics").text)
            assert running["ivmix_workers", "demo", "busy"] == 1
            assert client.post(f"/v1/videos/{waiting}/cancel").json()["error"]["code"] == "cancelled"
            at_cancel = client.post(f"/v1/videos/{long.id}/cancel").json()["step"]
            wait_for(lambda: client.get(f"/v1/videos/{long.id}").json()["error"], timeout_s=60)
            stopped = client.get(f"/v1/videos/{long.id}").json()
        assert stopped["error"]["code"] == "cancelled"
        # One step was on its way, one more may begin before the word arrives; the rest is for a slow Redis.
        assert stopped["step"] <= at_cancel + 3
        assert client.get(f"/v1/videos/{quick.id}").json()["status"] == "completed"
        assert client.get(f"/v1/videos/{waiting}").json()["attempt"] == 0


class TestMetrics:
    def test_requests_are_counted_by_route_and_the_queue_is_shown(self, client: TestClient, finished: Any) -> None:
        first, _ = create(client)["id"], create(client)["id"]
        for _ in range(3):
            client.get(f"/v1/videos/{first}")
        client.get("/v1/videos/video_x")
        client.get("/nowhere/at/all")
        finished(first, b"mp4")
        shown = figures(client.get("/metrics").text)
        assert shown["ivmix_http_requests_total", "POST", "/v1/videos", "200"] == 2
        assert shown["ivmix_http_requests_total", "GET", "/v1/videos/{video_id}", "200"] == 3
        assert shown["ivmix_http_requests_total", "GET", "/v1/videos/{video_id}", "404"] == 1
        assert shown["ivmix_http_requests_total", "any", "none", "404"] == 1
        assert shown["ivmix_http_request_seconds_count", "GET", "/v1/videos/{video_id}"] == 4
        assert shown["ivmix_job_store_up",] == 1
        assert shown["ivmix_job_store_memory_bytes",] > 100_000  # an empty server's, at least
        assert shown["ivmix_job_store_max_memory_bytes",] == 0
        assert shown["ivmix_queue_waiting", "demo"] >= 1
        assert shown["ivmix_workers", "demo", "idle"] == 0
        assert not any("video_" in part and "video_id" not in part for labels in shown for part in labels)

    def test_two_applications_have_separate_metrics(self, services: Services) -> None:
        first, second = TestClient(create_app(services)), TestClient(create_app(services))
        first.get("/livez")
        assert ("ivmix_http_requests_total", "GET", "/livez", "200") not in figures(second.get("/metrics").text)

    def test_without_redis_the_other_metrics_remain(self, client: TestClient, services: Services) -> None:
        client.get("/livez")
        services.redis.connection_pool.disconnect()
        services.redis.connection_pool.connection_kwargs["port"] = 9
        shown = figures(client.get("/metrics").text)
        assert shown["ivmix_job_store_up",] == 0
        assert shown["ivmix_http_requests_total", "GET", "/livez", "200"] == 1

    def test_the_documentation_has_every_metric_of_api_and_dispatcher_and_no_other(self, client: TestClient) -> None:
        """Those of workers: tests/unit/worker/test_metrics.py."""
        names = re.findall(r"^# TYPE (ivmix_\w+) (?:counter|gauge|histogram)$", client.get("/metrics").text, re.M)
        for family in DispatcherMetrics().registry.collect():
            names += [f"{family.name}_total" if family.type == "counter" else family.name]
        rows = re.findall(r"^\| (`ivmix_.*?) \|", (DOCS / "operations.md").read_text(), re.M)
        documented = {name for row in rows for name in re.findall(r"\w+", row)}
        own = {name for name in documented if not re.match("ivmix_(worker|storage)_", name)}
        assert own == {name for name in names if name.startswith("ivmix_") and not name.endswith("_created")}


@contextmanager
def api_process(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "service.api"], env=clean_environment() | environment, preexec_fn=ends_with_tests()
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class TestPorts:
    @pytest.fixture
    def environment(self, settings: Settings) -> dict[str, str]:
        return {
            "IVMIX_REDIS_URL": str(settings.redis_url),
            "IVMIX_DATA_DIR": str(settings.data_dir),
            "IVMIX_PORT": str(free_port()),
            "IVMIX_METRICS_PORT": str(free_port()),
        }

    def test_metrics_and_health_are_served_on_the_metrics_port_without_a_key(self, environment: dict[str, str]) -> None:
        public, own = (f"http://127.0.0.1:{environment[name]}" for name in ("IVMIX_PORT", "IVMIX_METRICS_PORT"))
        with api_process(environment), httpx2.Client(trust_env=False) as http:
            for url in (public, own):
                wait_for(lambda url=url: answers(http, f"{url}/readyz"), timeout_s=60)
                assert http.get(f"{url}/livez").json() == {"status": "ok"}
            assert http.get(f"{public}/v1/videos").status_code == 401
            assert http.get(f"{public}/metrics").status_code == 404
            shown = figures(http.get(f"{own}/metrics").text)
            assert shown["ivmix_http_requests_total", "GET", "/v1/videos", "401"] == 1
            assert http.get(f"{own}/v1/videos").json()["error"]["code"] == "unsupported_endpoint"

    def test_a_port_in_use_ends_the_process(self, environment: dict[str, str]) -> None:
        with api_process(environment), httpx2.Client(trust_env=False) as http:
            wait_for(lambda: answers(http, f"http://127.0.0.1:{environment['IVMIX_METRICS_PORT']}/livez"), timeout_s=60)
            with api_process(environment | {"IVMIX_PORT": str(free_port())}) as second:
                assert second.wait(60) != 0

    def test_shutdown_does_not_wait_for_open_streams(self, environment: dict[str, str], services: Services) -> None:
        url = f"http://127.0.0.1:{environment['IVMIX_PORT']}"
        with api_process(environment | {"IVMIX_AUTH": "off"}) as process, httpx2.Client(trust_env=False) as http:
            wait_for(lambda: answers(http, f"{url}/readyz"), timeout_s=60)
            video_id = http.post(f"{url}/v1/videos", json={"prompt": PROMPT}).json()["id"]
            with http.stream("GET", f"{url}/v1/videos/{video_id}/events") as answer:
                lines = answer.iter_lines()
                assert next(lines) == "event: video.progress"
                process.terminate()
                assert "data" not in "".join(lines).partition("retry")[2]  # it ends, in order
            assert process.wait(15) in (0, -15)  # uvicorn would wait 20 s for it


def answers(http: httpx2.Client, url: str) -> bool | None:
    try:
        return http.get(url).status_code == 200 or None
    except httpx2.TransportError:
        return None


class TestCors:
    DASHBOARD = "https://dash.example.com"

    @pytest.fixture
    def settings(self, valkey: str, tmp_path: Path) -> Settings:
        return Settings(redis_url=valkey, data_dir=tmp_path, cors_origins=f"{self.DASHBOARD}, http://localhost:3000")

    def test_a_listed_origin_may_ask_with_a_key(self, client: TestClient, services: Services) -> None:
        asked = {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,idempotency-key",
        }
        before = client.options("/v1/videos", headers={"origin": self.DASHBOARD} | asked)
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] == self.DASHBOARD
        assert "idempotency-key" in before.headers["access-control-allow-headers"]
        _, secret = services.keys.create("dash", scopes=[Scope.READ])
        answer = client.get("/v1/videos", headers={"origin": self.DASHBOARD, "authorization": f"Bearer {secret}"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, self.DASHBOARD)
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        refused = client.get("/v1/videos", headers={"origin": self.DASHBOARD})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, self.DASHBOARD)

    def test_others_may_not(self, client: TestClient) -> None:
        answer = client.get("/v1/videos", headers={"origin": "https://evil.example.com"})
        assert "access-control-allow-origin" not in answer.headers

    @pytest.mark.parametrize("origin", ["*", "dash.example.com", "https://dash.example.com/path"])
    def test_an_invalid_origin_prevents_the_start(self, origin: str) -> None:
        with pytest.raises(ValueError, match="cors_origins"):
            Settings(cors_origins=origin)


def test_the_docs_page_needs_no_other_server(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "https://" not in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert f"/docs/assets/{asset}" in page
        assert client.get(f"/docs/assets/{asset}").status_code == 200
