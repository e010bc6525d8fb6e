"""The whole service: `ivmix up` with its embedded Valkey, a real worker and the demo models, used over HTTP."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from tests.processes import (
    PROMPT,
    finished_video,
    is_listening,
    is_running,
    ivmix_up,
    light_engine,
    session_of,
    wait_for,
)
from worker.child.mp4 import read_mp4

STEPS = 6


@pytest.fixture
def http(demo_server: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=demo_server, timeout=30) as client:
        yield client


def test_prompt_becomes_a_video_with_progress_on_the_way(http: httpx2.Client, tmp_path: Path) -> None:
    created = http.post("/v1/videos", json={"prompt": PROMPT, "seed": 7, "num_inference_steps": STEPS})
    assert (created.status_code, created.json()["status"]) == (200, "queued")
    video_id, seen = created.json()["id"], [(0, "queued")]

    def ended() -> dict[str, object] | None:
        video = http.get(f"/v1/videos/{video_id}").json()
        if seen[-1] != (video["progress"], video["status"]):
            seen.append((video["progress"], video["status"]))
        return video if video["status"] in ("completed", "failed") else None

    video = wait_for(ended, timeout_s=120)
    assert video["status"] == "completed", video["error"]
    assert [p for p, _ in seen] == sorted(p for p, _ in seen)
    assert {"queued", "in_progress", "completed"} == {status for _, status in seen}
    assert len({p for p, status in seen if status == "in_progress"}) >= 3  # steps, not 0 and 100
    assert (video["progress"], video["seed"], video["size"], video["seconds"]) == (100, 7, "384x384", "1")
    assert video["inference_time_s"] > 0
    content = http.get(f"/v1/videos/{video_id}/content")
    assert (content.status_code, content.headers["content-type"]) == (200, "video/mp4")
    (tmp_path / "a.mp4").write_bytes(content.content)
    frames = read_mp4(tmp_path / "a.mp4")
    assert frames.shape == (8, 384, 384, 3)
    corner = frames[:, 8:40, 8:40].astype(int).mean((0, 1, 2))
    assert corner[0] + 30 < min(corner[1], corner[2])  # teal


def test_same_seed_gives_the_same_bytes_and_another_seed_another_video(http: httpx2.Client) -> None:
    ids = [
        http.post("/v1/videos", json={"prompt": PROMPT, "seed": seed, "num_inference_steps": STEPS}).json()["id"]
        for seed in (3, 3, 4)
    ]
    for video_id in ids:
        assert finished_video(http, video_id)["status"] == "completed"
    first, second, other = (http.get(f"/v1/videos/{video_id}/content").content for video_id in ids)
    assert first == second
    assert first != other


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the SDK says it of OpenAI's own, closed service
def test_openai_client_works_unmodified(demo_server: str, tmp_path: Path) -> None:
    body = {"seed": 5, "num_inference_steps": STEPS}
    with openai.OpenAI(base_url=f"{demo_server}/v1", api_key="unused") as client:
        video = client.videos.create_and_poll(prompt=PROMPT, model="demo", seconds="1", size="384x384", extra_body=body)
        assert (video.status, video.error) == ("completed", None)
        client.videos.download_content(video.id).write_to_file(tmp_path / "a.mp4")
        sheet = client.videos.download_content(video.id, variant="spritesheet").read()
        assert client.videos.delete(video.id).deleted is True
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve(video.id)
    assert read_mp4(tmp_path / "a.mp4").shape == (8, 384, 384, 3)
    assert sheet[:2] == b"\xff\xd8"  # JPEG


def test_prompt_outside_the_world_is_refused_with_what_can_be_drawn(http: httpx2.Client) -> None:
    answer = http.post("/v1/videos", json={"prompt": "a horse running on the moon"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == ("prompt", "invalid_request_error")
    for words in ("'horse'", "'moon'", "circle, square or triangle", "a red circle moving left on a teal background"):
        assert words in error["message"]


def test_models_say_what_they_can_do(http: httpx2.Client) -> None:
    model = http.get("/v1/models/demo").json()
    assert (model["id"], model["object"]) == ("demo", "model")
    assert "384x384" in str(model)


def test_a_worker_that_crashes_is_started_again_and_ctrl_c_leaves_no_process_and_no_port(tmp_path: Path) -> None:
    with ivmix_up(tmp_path, **light_engine(FAKE_STEP_S="0.1")) as (process, url):
        for pid in session_of(process.pid):
            if "\0worker\0" in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)
        with httpx2.Client(base_url=url) as http:  # in the middle of a job, the worst moment
            http.post("/v1/videos", json={"prompt": PROMPT, "num_inference_steps": 200})
            wait_for(lambda: http.get("/v1/videos").json()["data"][0]["progress"] > 0 or None, timeout_s=120)
        family = session_of(process.pid)
        assert len(family) >= 4, "API, worker, its child and the embedded server"
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 0
    assert [pid for pid in family if is_running(pid)] == []
    assert not is_listening(url)
    with ivmix_up(tmp_path, "--workers", "0") as (_, url), httpx2.Client(base_url=url) as http:
        video = http.get("/v1/videos").json()["data"][0]
        assert video["status"] == "queued"  # the job waited for us


def test_supervisor_that_is_killed_takes_everything_with_it(tmp_path: Path) -> None:
    with ivmix_up(tmp_path, **light_engine()) as (process, url):
        family = session_of(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    wait_for(lambda: not [pid for pid in family if is_running(pid)], timeout_s=45, hint="for the orphans to end")
    assert not is_listening(url)
