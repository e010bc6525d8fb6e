"""What an operator sees of one video in real processes: log lines of API and worker, and metrics."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx2

from service.settings import Settings
from tests.child_processes import ends_with_tests
from tests.ports import free_port
from tests.processes import clean_environment, finished_video, wait_for

PROMPT = "a purple triangle moving up on a pink background"
LINE_KEYS = {"event", "level", "logger", "timestamp"}


def test_one_video_can_be_followed_and_nothing_private_is_logged(swift: Settings, tmp_path: Path) -> None:
    video_id, metrics, text = one_video(swift, tmp_path / "log")
    secret = swift.s3_secret_access_key
    assert secret is not None
    for private in (PROMPT, "purple", "X-Amz-Signature", secret.get_secret_value() + '"', swift.redis_url or ""):
        assert private not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(set(line) >= LINE_KEYS for line in lines)
    started = next(line for line in lines if " started: attempt " in line["event"])
    assert started["video_id"] == video_id
    assert re.fullmatch(r"[0-9a-f-]+", started["execution_id"])
    assert any(line.get("request_id") == "req-of-the-client" and video_id in line["event"] for line in lines)
    assert any(line.get("video_id") == video_id and "deleted" in line["event"] for line in lines)
    for sample in (
        'ivmix_worker_executions_total{model="demo",outcome="completed"} 1.0',
        'ivmix_worker_steps_total{model="demo"} 3.0',
        'ivmix_storage_seconds_count{operation="put"} 4.0',
        'ivmix_worker_phase_seconds_count{model="demo",phase="uploading"} 1.0',
    ):
        assert sample in metrics


def one_video(swift: Settings, log_file: Path) -> tuple[str, str, str]:
    """Create, download and delete a video. Returns its id, the worker's metrics and the log of API and worker."""
    api_port, metrics_port = free_port(), free_port()
    own = environment(swift, api_port, metrics_port)
    with log_file.open("w") as log, httpx2.Client(trust_env=False, timeout=30) as http:
        programs = [["service.api"], ["worker", "demo"]]
        processes = [
            subprocess.Popen([sys.executable, "-m", *program], env=own, stderr=log, preexec_fn=ends_with_tests())
            for program in programs
        ]
        try:
            http.base_url = httpx2.URL(f"http://127.0.0.1:{api_port}")
            wait_for(lambda: is_ready(http), timeout_s=90)
            body = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 3, "sampler": {"name": "ddim"}}
            created = http.post("/v1/videos", json=body, headers={"x-request-id": "req-of-the-client"})
            video_id = created.json()["id"]
            assert finished_video(http, video_id)["status"] == "completed"
            redirect = http.get(f"/v1/videos/{video_id}/content")
            assert (redirect.status_code, httpx2.get(redirect.headers["location"]).status_code) == (307, 200)
            metrics = httpx2.get(f"http://127.0.0.1:{metrics_port}/metrics").text
            http.delete(f"/v1/videos/{video_id}")
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(60)
    return video_id, metrics, log_file.read_text()


def environment(swift: Settings, api_port: int, metrics_port: int) -> dict[str, str]:
    assert swift.s3_secret_access_key is not None
    return {
        **clean_environment(),
        "IVMIX_REDIS_URL": swift.redis_url or "",
        "IVMIX_DATA_DIR": str(swift.data_dir),
        "IVMIX_PORT": str(api_port),
        "IVMIX_AUTH": "off",
        "IVMIX_WORKER_METRICS_PORT": str(metrics_port),
        "IVMIX_STORAGE": "s3",
        "IVMIX_S3_BUCKET": swift.s3_bucket or "",
        "IVMIX_S3_ENDPOINT_URL": swift.s3_endpoint_url or "",
        "IVMIX_S3_ACCESS_KEY_ID": swift.s3_access_key_id or "",
        "IVMIX_S3_SECRET_ACCESS_KEY": swift.s3_secret_access_key.get_secret_value(),
    }


def is_ready(http: httpx2.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False
