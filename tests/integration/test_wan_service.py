"""A tiny Wan through the whole service: `ivmix up` with a real worker, used over HTTP."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.processes import child_of, finished_video, ivmix_up, wait_for
from tests.tiny_wan import FRAMES, HEIGHT, NEGATIVE, PROMPT, WIDTH, save_wan, wan_entry
from worker.child.mp4 import read_mp4
from worker.models import load

pytestmark = pytest.mark.slow  # the worker's process loads torch and diffusers

TOKENS = 'image_conditioning = "tokens"'
LONG = 160  # steps: a second or two


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    save_wan(folder, TOKENS)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, httpx2.Client]]:
    """The process id of `ivmix up`, and a client of it."""
    settings = {
        "IVMIX_MODELS_FILE": str(folder / "models.toml"),
        "IVMIX_PREVIEW_SECONDS": "0.05",
        "IVMIX_CHECKPOINT_S": "0.01",
        "OMP_NUM_THREADS": "1",
    }
    with (
        ivmix_up(tmp_path_factory.mktemp("data"), **settings) as (process, url),
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        yield process.pid, client


def create(http: httpx2.Client, **fields: Any) -> str:
    body = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": 7, **fields}
    answer = http.post("/v1/videos", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def video(http: httpx2.Client, video_id: str) -> dict[str, Any]:
    return http.get(f"/v1/videos/{video_id}").json()


def test_prompt_becomes_a_clip_of_the_right_size_with_progress_and_preview(
    server: tuple[int, httpx2.Client], tmp_path: Path
) -> None:
    _, http = server
    (model,) = http.get("/v1/models").json()["data"]
    assert (model["id"], model["family"], model["samplers"]) == ("tiny", "wan", ["ddim", "iv-mixed", "fused"])
    assert (model["experimental"], model["combinations"]) == (["iv-mixed", "fused"], ["IV-VI"])
    video_id = create(http, num_inference_steps=LONG // 2)
    shown = wait_for(lambda: url if (url := video(http, video_id)["preview_url"]) else None, timeout_s=60)
    preview = http.get(shown)
    assert preview.headers["content-type"] == "image/webp"
    assert 0 < video(http, video_id)["progress"] < 100
    done = finished_video(http, video_id)
    assert (done["status"], done["error"], done["size"], done["seconds"]) == (
        *("completed", None, f"{WIDTH}x{HEIGHT}"),
        f"{FRAMES / 8:g}",
    )
    content = http.get(f"/v1/videos/{video_id}/content")
    (tmp_path / "a.mp4").write_bytes(content.content)
    assert read_mp4(tmp_path / "a.mp4").shape == (FRAMES, HEIGHT, WIDTH, 3)


def test_running_clip_is_cancelled_and_the_next_one_completes(server: tuple[int, httpx2.Client]) -> None:
    _, http = server
    first = create(http, num_inference_steps=1000)
    wait_for(lambda: video(http, first)["progress"] > 0 or None)
    assert http.post(f"/v1/videos/{first}/cancel").status_code == 200
    ended = finished_video(http, first)
    assert (ended["status"], ended["error"]["code"]) == ("failed", "cancelled")
    assert finished_video(http, create(http, num_inference_steps=2))["status"] == "completed"


def test_clip_whose_worker_was_killed_is_byte_for_byte_the_undisturbed_one(server: tuple[int, httpx2.Client]) -> None:
    pid, http = server
    fields = {"num_inference_steps": LONG, "sampler": {"solver": "dpmpp-2m"}, "seconds": "1"}
    disturbed = create(http, **fields)
    wait_for(lambda: video(http, disturbed)["progress"] > 20 or None)
    os.kill(child_of(pid), signal.SIGKILL)
    undisturbed = create(http, **fields)
    contents: list[bytes] = []
    for video_id in (disturbed, undisturbed):
        done = finished_video(http, video_id)
        assert done["status"] == "completed", done["error"]
        contents.append(http.get(f"/v1/videos/{video_id}/content").content)
    assert contents[0] == contents[1]


def test_uploaded_picture_is_the_first_frame(server: tuple[int, httpx2.Client], folder: Path, tmp_path: Path) -> None:
    _, http = server
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    shown = np.stack([5 * x, 7 * y, 255 - 5 * x], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(shown).save(file, "PNG")
    answer = http.post(
        "/v1/videos", data={"prompt": PROMPT, "seed": "7"}, files={"input_reference": ("p.png", file.getvalue())}
    )
    done = finished_video(http, answer.json()["id"])
    assert (done["status"], done["input_reference"]["use"]) == ("completed", "first_frame"), done["error"]
    (tmp_path / "a.mp4").write_bytes(http.get(f"/v1/videos/{done['id']}/content").content)
    models = load(wan_entry(folder, TOKENS), "cpu")
    expected = models.decode(models.encode_frames(torch.from_numpy(shown)[None]))[0].numpy()
    found = read_mp4(tmp_path / "a.mp4")[0]
    assert np.abs(found.astype(int) - expected).mean() < 8, "as the random autoencoder draws the picture"


def test_experimental_video_says_so(server: tuple[int, httpx2.Client]) -> None:
    _, http = server
    for sampler in ("iv-mixed", "fused"):
        done = finished_video(http, create(http, num_inference_steps=5, sampler=sampler))
        assert (done["status"], done["experimental"]) == ("completed", True), done["error"]
    assert finished_video(http, create(http))["experimental"] is False


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"num_frames": 50}, "num_frames", "clips of 4k + 1 frames; the nearest are 49 and 53"),
        ({"sampler": "zigzag"}, "sampler.name", "use ddim or iv-mixed or fused"),
        ({"sampler": {"name": "iv-mixed", "combination": "II-VV"}}, "sampler.combination", "use IV-VI, or fused"),
        ({"sampler": {"solver": "lcm"}}, "sampler.solver", "use ddim or dpmpp-2m"),
        ({"sampler": {"network": "image"}}, "sampler.network", "use network video"),
        ({"clip_skip": 1}, "clip_skip", "T5, which has no clip_skip"),
    ],
)
def test_what_the_model_cannot_do_is_refused_at_once(
    server: tuple[int, httpx2.Client], fields: dict[str, Any], param: str, message: str
) -> None:
    _, http = server
    answer = http.post("/v1/videos", json={"prompt": PROMPT, **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert message in answer.json()["error"]["message"]
