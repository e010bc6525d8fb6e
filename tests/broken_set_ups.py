"""Set-ups that are broken in one way each, made from one without a fault; `ivmix doctor` must name what is wrong."""

from __future__ import annotations

import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from service.doctor.finding import Severity
from service.jobs.rq_queues import generate_queue
from service.maintenance.leader import LEADER
from service.settings import MODELS_FILE, Settings
from service.wiring import Services
from tests.containers import ROOT
from tests.factories import make_job
from tests.ports import free_port


@contextmanager
def server_setting(services: Services, name: str, value: str) -> Generator[None]:
    redis: Any = services.redis
    before = redis.config_get(name)[name]
    redis.config_set(name, value)
    try:
        yield
    finally:
        redis.config_set(name, before)


@contextmanager
def other_program() -> Generator[int]:
    """Port of an HTTP server that is not ivmix."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


# Each breaks one thing of a healthy set-up; the settings that it yields are examined inside.
Break = Callable[[Services, Path], Any]


@contextmanager
def without_append_only_file(services: Services, _folder: Path) -> Generator[Settings]:
    with server_setting(services, "appendonly", "no"):
        yield services.settings


@contextmanager
def synced_every_second(services: Services, _folder: Path) -> Generator[Settings]:
    with server_setting(services, "appendfsync", "everysec"):
        yield services.settings


@contextmanager
def evicting(services: Services, _folder: Path) -> Generator[Settings]:
    with server_setting(services, "maxmemory-policy", "allkeys-lru"):
        yield services.settings


@contextmanager
def full_memory(services: Services, _folder: Path) -> Generator[Settings]:
    with server_setting(services, "maxmemory", "1mb"):
        yield services.settings


@contextmanager
def without_the_replicas_to_wait_for(services: Services, _folder: Path) -> Generator[Settings]:
    yield services.settings.model_copy(update={"redis_wait_replicas": 1, "redis_wait_s": 0.05})


@contextmanager
def absent_redis(services: Services, _folder: Path) -> Generator[Settings]:
    yield services.settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port()}"})


@contextmanager
def wrong_password(services: Services, _folder: Path) -> Generator[Settings]:
    url = services.redis_url
    yield services.settings.model_copy(update={"redis_url": url.replace(url.partition("@")[0], "redis://:wrong")})


@contextmanager
def file_as_data_folder(services: Services, folder: Path) -> Generator[Settings]:
    (folder / "file").write_text("")
    yield services.settings.model_copy(update={"data_dir": folder / "file"})


@contextmanager
def almost_full_disk(services: Services, _folder: Path) -> Generator[Settings]:
    yield services.settings.model_copy(update={"min_free_mb": 10**9})


@contextmanager
def port_in_use(services: Services, _folder: Path) -> Generator[Settings]:
    with other_program() as port:
        yield services.settings.model_copy(update={"port": port})


@contextmanager
def one_port_twice(services: Services, _folder: Path) -> Generator[Settings]:
    yield services.settings.model_copy(update={"metrics_port": services.settings.port})


@contextmanager
def few_files(services: Services, _folder: Path) -> Generator[Settings]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield services.settings.model_copy(update={"max_connections": before[1]})


@contextmanager
def open_to_the_network(services: Services, _folder: Path) -> Generator[Settings]:
    yield services.settings.model_copy(update={"auth": "off", "host": "0.0.0.0"})


@contextmanager
def limit_of_keys_without_keys(services: Services, _folder: Path) -> Generator[Settings]:
    yield services.settings.model_copy(update={"auth": "off", "gpu_seconds_per_day": 3600})


@contextmanager
def trusting_everyone(services: Services, _folder: Path) -> Generator[Settings]:
    yield services.settings.model_copy(update={"trusted_proxies": ("0.0.0.0/0",)})


@contextmanager
def wrong_public_address(services: Services, _folder: Path) -> Generator[Settings]:
    with other_program() as port:
        yield services.settings.model_copy(update={"public_base_url": f"http://127.0.0.1:{port}"})


@contextmanager
def no_api_key(services: Services, _folder: Path) -> Generator[Settings]:
    services.redis.delete("ivm:keys")
    yield services.settings


@contextmanager
def no_maintenance(services: Services, _folder: Path) -> Generator[Settings]:
    services.redis.delete(LEADER)
    yield services.settings


@contextmanager
def no_worker(services: Services, _folder: Path) -> Generator[Settings]:
    services.redis.delete("rq:workers:gpu-demo", "rq:workers")
    services.store.create(make_job(), generate_queue(services.redis, "demo"))
    yield services.settings


@contextmanager
def worker_that_cannot_load(services: Services, _folder: Path) -> Generator[Settings]:
    services.redis.delete("rq:workers:gpu-demo", "rq:workers")
    services.loads.report("demo", "w1", "the weights are damaged")
    yield services.settings


@contextmanager
def no_webhook_dispatcher(services: Services, _folder: Path) -> Generator[Settings]:
    redis: Any = services.redis
    redis.zadd("ivm:webhook:due", {"whd_1": time.time() - 3600})
    yield services.settings


@contextmanager
def broken_models_file(services: Services, folder: Path) -> Generator[Settings]:
    (folder / "models.toml").write_text("[models.x]\nfamily = 'sora'\n")
    yield services.settings.model_copy(update={"models_file": folder / "models.toml"})


@contextmanager
def truncated_weights(services: Services, folder: Path) -> Generator[Settings]:
    shutil.copytree(ROOT / "demo" / "weights", folder / "weights", copy_function=os.link)
    weights = folder / "weights" / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()  # not the original, to which it is a link
    weights.write_bytes(content[:-100])
    models = folder / "models.toml"
    models.write_text(MODELS_FILE.read_text().replace("../../demo/weights", str(folder / "weights")))
    yield services.settings.model_copy(update={"models_file": models})


@contextmanager
def foreign_signing_secret(services: Services, _folder: Path) -> Generator[Settings]:
    services.redis.set("ivm:signing_secret", "short")
    yield services.settings


@contextmanager
def receiver_of_traces_that_is_none(services: Services, _folder: Path) -> Generator[Settings]:
    with other_program() as port:
        yield services.settings.model_copy(update={"otlp_endpoint": f"http://127.0.0.1:{port}"})


CASES: list[tuple[Break, str, Severity, str]] = [
    (without_append_only_file, "persistence", Severity.PROBLEM, "appendonly is off"),
    (synced_every_second, "persistence", Severity.WARNING, "everysec"),
    (evicting, "memory", Severity.PROBLEM, "maxmemory-policy is allkeys-lru"),
    (full_memory, "memory", Severity.PROBLEM, "Redis is full"),
    (without_the_replicas_to_wait_for, "replicas", Severity.PROBLEM, "new videos get 503: 0 of"),
    (absent_redis, "redis", Severity.PROBLEM, "no Redis answers"),
    (wrong_password, "redis", Severity.PROBLEM, "rejects the user or password"),
    (file_as_data_folder, "folders", Severity.PROBLEM, "is not a folder"),
    (almost_full_disk, "disk", Severity.PROBLEM, "IVMIX_MIN_FREE_MB"),
    (port_in_use, "ports", Severity.PROBLEM, "used by another program"),
    (one_port_twice, "ports", Severity.PROBLEM, "IVMIX_METRICS_PORT and IVMIX_PORT"),
    (few_files, "open files", Severity.WARNING, "may open"),
    (open_to_the_network, "authentication", Severity.PROBLEM, "reachable from other machines"),
    (limit_of_keys_without_keys, "limits of keys", Severity.WARNING, "IVMIX_GPU_SECONDS_PER_DAY"),
    (trusting_everyone, "reverse proxy", Severity.PROBLEM, "0.0.0.0/0"),
    (wrong_public_address, "public address", Severity.PROBLEM, "answered with 404"),
    (receiver_of_traces_that_is_none, "traces", Severity.PROBLEM, "answers with"),
    (no_api_key, "API keys", Severity.PROBLEM, "no API key"),
    (no_maintenance, "maintenance", Severity.PROBLEM, "no maintenance process"),
    (no_worker, "workers", Severity.PROBLEM, "demo: no worker is alive; 1 videos wait"),
    (worker_that_cannot_load, "workers", Severity.PROBLEM, "the weights are damaged"),
    (no_webhook_dispatcher, "webhooks", Severity.PROBLEM, "1 deliveries wait"),
    (broken_models_file, "models", Severity.PROBLEM, "sora"),
    (truncated_weights, "models", Severity.PROBLEM, "unet: "),
    (foreign_signing_secret, "signing secret", Severity.PROBLEM, "5 bytes"),
]
