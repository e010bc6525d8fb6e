"""Clips of more frames than the motion modules take, through the API and a real worker with a tiny model."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.settings import Settings
from service.wiring import Services, open_services
from tests.conftest import serve
from tests.factories import PROMPT
from tests.processes import child_of, finished_video, wait_for, worker
from tests.tiny_models import animatediff_without_image_parts, write_entry

FRAMES, STEPS, TAKEN = 34, 10, 32  # the tiny motion modules take 32 frames
WAIT_S = 240.0


@pytest.fixture
def services(valkey: str, tmp_path: Path) -> Iterator[Services]:
    folder = animatediff_without_image_parts(tmp_path / "model")
    write_entry(folder, "animatediff", "context_windows = { length = 16, stride = 12 }")
    file = folder / "models.toml"
    text = file.read_text().replace("max = 8 }", f"max = {FRAMES} }}").replace("32x32", "64x64")
    file.write_text(text)
    settings = Settings(redis_url=valkey, data_dir=tmp_path, auth="off", models_file=file, lease_s=4, beat_s=0.4)
    opened = open_services(settings)
    yield opened
    opened.close()


@pytest.fixture
def http(services: Services) -> Iterator[httpx2.Client]:
    with serve(services) as url, httpx2.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture
def environment(services: Services) -> dict[str, str]:
    settings = services.settings
    return {
        "IVMIX_MODELS_FILE": str(settings.models_file),
        "IVMIX_REDIS_URL": str(settings.redis_url),
        "IVMIX_DATA_DIR": str(settings.data_dir),
        "IVMIX_LEASE_S": "4",
        "IVMIX_BEAT_S": "0.4",
        "IVMIX_LOOK_S": "0.1",
        "IVMIX_CHECKPOINT_S": "0.01",
        "OMP_NUM_THREADS": "1",
    }


def create(http: httpx2.Client, **fields: Any) -> str:
    body = {
        "prompt": PROMPT,
        "num_frames": FRAMES,
        "num_inference_steps": STEPS,
        "seed": 5,
        "sampler": "ddim",
        "guidance_scale": 1,
    }
    answer = http.post("/v1/videos", json=body | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def reached(http: httpx2.Client, video_id: str, step: int) -> dict[str, Any]:
    def there() -> dict[str, Any] | None:
        video = http.get(f"/v1/videos/{video_id}").json()
        assert video["status"] in ("queued", "in_progress"), video
        return video if video["step"] >= step else None

    return wait_for(there, timeout_s=WAIT_S, hint=f"for step {step}")


def content(http: httpx2.Client, video_id: str) -> bytes:
    video = finished_video(http, video_id, timeout_s=WAIT_S)
    assert video["status"] == "completed", video
    return http.get(f"/v1/videos/{video_id}/content").content


def test_long_clip_is_made_cancelled_and_refused(http: httpx2.Client, environment: dict[str, str]) -> None:
    assert FRAMES > TAKEN
    refused = http.post("/v1/videos", json={"prompt": PROMPT, "num_frames": FRAMES + 1})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "num_frames")
    short = create(http, num_frames=8, num_inference_steps=1)
    long, cancelled = create(http, num_inference_steps=2), create(http, num_inference_steps=50)
    with worker(environment, "worker", "tiny"):
        assert finished_video(http, short, timeout_s=WAIT_S)["status"] == "completed"
        video = finished_video(http, long, timeout_s=WAIT_S)
        assert (video["status"], video["num_frames"], video["step"]) == ("completed", FRAMES, 2)
        running = reached(http, cancelled, 3)
        assert (running["total_steps"], running["progress"] >= 6) == (50, True)
        http.post(f"/v1/videos/{cancelled}/cancel")
        assert finished_video(http, cancelled)["error"]["code"] == "cancelled"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", ["kill the child", "stop the worker"])
def test_long_clip_whose_worker_was_disturbed_is_the_undisturbed_one(
    http: httpx2.Client, environment: dict[str, str], fault: str
) -> None:
    disturbed, undisturbed = create(http), create(http)
    with worker(environment, "worker", "tiny") as first:
        reached(http, disturbed, 3)
        if fault == "kill the child":
            os.kill(child_of(first.pid), signal.SIGKILL)
            assert content(http, disturbed) == content(http, undisturbed)
            return
        first.terminate()
        assert first.wait(60) == 0
    with worker(environment, "worker", "tiny"):
        assert content(http, disturbed) == content(http, undisturbed)
