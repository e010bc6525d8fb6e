"""The images of docker/, built and run without Docker: the API answers, the worker makes a video of the demo model."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import av
import httpx2
import pytest
from redis import Redis

from service.process.embedded_valkey import EmbeddedValkey
from tests.containers import DEPLOY, compose
from tests.debian_root import require
from tests.factories import PROMPT
from tests.image_builds import ImageStore
from tests.ports import free_port
from tests.processes import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
USER = 10001
COMPOSE_ONLY = (
    "IVMIX_STORAGE",
    "IVMIX_S3_",
    "IVMIX_TRUSTED_PROXIES",
)  # the S3 server of the compose file is not run here


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageStore]:
    require("mmdebstrap", "buildah", "podman", "runc")
    folder = tmp_path_factory.mktemp("images")
    store = ImageStore(folder)
    try:
        store.make_base()
        yield store
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def own_folder(path: Path) -> Path:
    path.mkdir()
    os.chown(path, USER, USER)
    return path


def test_the_images_make_a_video(store: ImageStore, tmp_path: Path) -> None:
    sizes = {image: store.build(image) for image in ("ivmix-service", "ivmix-worker")}
    print(f"megabytes: {sizes}")
    tmp_path.parent.chmod(0o711)
    tmp_path.chmod(0o711)
    data, scratch = own_folder(tmp_path / "data"), own_folder(tmp_path / "scratch")
    port = free_port()
    services = compose()["services"]
    for service in services.values():
        variables = service.get("environment", {}).items()
        service["environment"] = {name: value for name, value in variables if not name.startswith(COMPOSE_ONLY)}
    with (
        EmbeddedValkey(tmp_path / "valkey") as url,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as http,
    ):
        own = {"IVMIX_REDIS_URL": url, "IVMIX_HOST": "127.0.0.1", "IVMIX_PORT": str(port), "IVMIX_AUTH": "off"}
        own["IVMIX_METRICS_PORT"] = str(free_port())
        with store.running("ivmix-service", services["api"], {data: "/data"}, **own) as api:
            wait_for(lambda: answers(http), timeout_s=120, hint="for the API's image")
            healthy = [part.replace("8000", str(port)) for part in services["api"]["healthcheck"]["test"][1:]]
            subprocess.run(store.podman("exec", api, *healthy), check=True, capture_output=True)
            assert http.get("/metrics").status_code == 404
            video_id = http.post("/v1/videos", json={"prompt": PROMPT}).json()["id"]
            own["IVMIX_WORKER_METRICS_PORT"] = str(free_port())
            mounts = {data: "/data", scratch: "/scratch"}
            with store.running("ivmix-worker", services["worker-demo"], mounts, **own) as worker:
                state = wait_for(lambda: ended(http, video_id), timeout_s=300, hint="for the video")
                assert state == "completed"
                ready = services["worker-demo"]["healthcheck"]["test"][1]
                subprocess.run(store.podman("exec", worker, "sh", "-c", ready), check=True, capture_output=True)
            back_up_and_restore(store, api, url)
            assert http.get(f"/v1/videos/{video_id}").json()["status"] == "completed"
            (tmp_path / "out.mp4").write_bytes(http.get(f"/v1/videos/{video_id}/content").content)
    with av.open(str(tmp_path / "out.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 8


def back_up_and_restore(store: ImageStore, api: str, redis_url: str) -> None:
    """What deploy/README.md prints for the API's container, with the same shell commands."""
    back_up, restore = re.findall(r"exec -T api sh -c '(.*)' [<>] ", (DEPLOY / "README.md").read_text())

    def in_container(script: str, stdin: bytes) -> bytes:
        command = store.podman("exec", "--interactive", api, "sh", "-c", script)
        ran = subprocess.run(command, input=stdin, capture_output=True, check=False)
        assert ran.returncode == 0, ran.stderr.decode()
        return ran.stdout

    records = in_container(back_up, b"")
    with Redis.from_url(redis_url) as redis:
        redis.flushall()
    assert b"0 rebuilt, 1 known, 0 incomplete" in in_container(restore, records)  # it was in the backup


def answers(http: httpx2.Client) -> bool | None:
    try:
        return http.get("/readyz").status_code == 200 or None
    except httpx2.HTTPError:
        return None


def ended(http: httpx2.Client, video_id: str) -> str | None:
    state = http.get(f"/v1/videos/{video_id}").json()["status"]
    return state if state in ("completed", "failed") else None
