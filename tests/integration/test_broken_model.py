"""A model whose files break while `ivmix up` runs: it is said to be so, its jobs fail, the other model works on.

`make soak` damages a real file under the real engine.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import httpx2
import pytest

from service.settings import MODELS_FILE
from tests import processes
from tests.processes import PROMPT, clean_environment, finished_video, light_engine, session_of, wait_for
from tests.terminal import Terminal

PROMISED_S = 60.0  # until a job of a broken model has failed


def registry_with_copy(folder: Path) -> Path:
    """A registry with the demo models, and with a copy of them named `second` in `folder`; returns its file."""
    shutil.copytree(MODELS_FILE.parents[2] / "demo" / "weights", folder / "second")
    demo = MODELS_FILE.read_text().partition("\n[models.animatediff]")[0].partition("[models.demo]")[2]
    demo = demo.partition("\n# The three model pairs")[0]
    second = demo.replace("../../demo/weights", str(folder / "second"))
    second = second.replace("[models.demo.prompt]", "[models.second.prompt]")
    demo = demo.replace("../../demo/weights", str(MODELS_FILE.parents[2] / "demo" / "weights"))
    file = folder / "models.toml"
    file.write_text(f"[models.demo]{demo}\n[models.second]\naliases = ['sora-2']{second}")
    return file


def child_of(supervisor: int, model: str) -> int:
    """Process id of the child that has loaded a model."""
    for pid in session_of(supervisor):
        if f"worker\0{model}\0" in Path(f"/proc/{pid}/cmdline").read_text():
            return processes.child_of(pid)
    raise LookupError(model)


def offered(http: httpx2.Client) -> list[str]:
    return [model["id"] for model in http.get("/v1/models").json()["data"]]


class Damage:
    """Damages the weights of `second` and repairs them."""

    def __init__(self, folder: Path, *, is_real: bool) -> None:
        self.weights = folder / "second" / "vae" / "diffusion_pytorch_model.safetensors"
        self.content = self.weights.read_bytes()
        self.reason = None if is_real else folder / "reasons" / "second"  # the light engine reads no weights

    @property
    def environment(self) -> dict[str, str]:
        return {} if self.reason is None else light_engine(LOAD_ERRORS=str(self.reason.parent), FAKE_STEP_S="0.05")

    def begin(self) -> None:
        if self.reason is None:
            os.truncate(self.weights, len(self.content) // 2)
        else:
            self.reason.parent.mkdir()
            self.reason.write_text(f"{self.weights} is truncated")

    def end(self) -> None:
        if self.reason is None:
            self.weights.write_bytes(self.content)
        else:
            self.reason.unlink()


@pytest.mark.parametrize("is_real", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["light", "real"])
def test_jobs_of_a_model_that_breaks_fail_others_complete_and_it_comes_back(tmp_path: Path, is_real: bool) -> None:
    registry = registry_with_copy(tmp_path)
    damage = Damage(tmp_path, is_real=is_real)
    command = [sys.executable, "-m", "service.cli", "up", "--port", "0", "--data", str(tmp_path / "data")]
    environment = clean_environment() | damage.environment | {"IVMIX_MODELS_FILE": str(registry)}
    with Terminal(command, cwd=tmp_path, env=environment) as terminal:
        terminal.read_until("ready for work", timeout_s=240)
        url = next(line for line in terminal.lines if "ivmix is up on" in line).split()[4]
        with httpx2.Client(base_url=url, timeout=30) as http:
            assert offered(http) == ["demo", "second"]
            body = {"prompt": PROMPT, "num_inference_steps": 100}
            jobs = [http.post("/v1/videos", json={**body, "model": "sora-2"}).json()["id"] for _ in range(2)]
            wait_for(lambda: http.get(f"/v1/videos/{jobs[0]}").json()["progress"] > 0 or None, timeout_s=120)
            damage.begin()
            os.kill(child_of(terminal.process.pid, "second"), signal.SIGKILL)
            broken_at = time.monotonic()
            for job in jobs:
                video = finished_video(http, job)
                assert (video["status"], video["error"]["code"]) == ("failed", "model_unavailable")
                assert "vae/diffusion_pytorch_model.safetensors" in video["error"]["message"]
                assert str(tmp_path) not in video["error"]["message"]
            assert time.monotonic() - broken_at < PROMISED_S
            assert offered(http) == ["demo"]
            refused = http.post("/v1/videos", json={"prompt": PROMPT, "model": "sora-2"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unavailable")
            assert "vae/diffusion_pytorch_model.safetensors" in refused.json()["error"]["message"]
            demo = http.post("/v1/videos", json={"prompt": PROMPT, "num_inference_steps": 2}).json()["id"]
            assert finished_video(http, demo)["status"] == "completed"
            terminal.read_until("model second cannot be loaded by worker second 0")
            damage.end()
            wait_for(lambda: offered(http) == ["demo", "second"] or None, timeout_s=90)
            again = http.post("/v1/videos", json={"prompt": PROMPT, "model": "sora-2", "num_inference_steps": 2})
            assert finished_video(http, again.json()["id"])["status"] == "completed"
        terminal.read_until("model second is loaded again")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.wait() == 0
    assert str(damage.weights) in (tmp_path / "data" / "logs" / "up.log").read_text()
