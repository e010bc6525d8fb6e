"""What `make demo` writes next to its video, and the arms that `python -m demo.evaluate` scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from demo import run
from demo.evaluate import arms
from sampler import sample, seeded_noise
from service.catalog.registry import ModelRegistry
from worker.child.engine import Engine
from worker.child.mp4 import read_mp4, write_mp4


def test_second_file_of_make_demo_shows_the_three_arms_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: tmp_path / f"{name}.mp4" for name in run.ARMS}
    shades = {"ddim-image": 60, "ddim": 120, "iv-mixed": 180}
    for name, file in files.items():
        write_mp4(np.full((8, 96, 96, 3), shades[name], np.uint8), file, fps=8)
    videos = {
        name: {"fps": 8, "network_calls": {"image": 16, "video": 16}, "inference_time_s": 1.25} for name in run.ARMS
    }
    monkeypatch.setattr(run, "COMPARISON", tmp_path / "compare.mp4")
    run.compare(videos, files)
    frames = read_mp4(tmp_path / "compare.mp4").astype(int)
    assert frames.shape == (8, 176, 288, 3)
    middles = [frames[:, 60:120, 96 * i + 20 : 96 * i + 76].mean() for i in range(3)]
    assert middles == pytest.approx([60, 120, 180], abs=5)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(ModelRegistry.load().get("demo"), torch.device("cpu"))


def test_arms_are_each_model_alone_and_both_and_what_as_many_calls_buy(engine: Engine) -> None:
    plans = arms(engine.models)
    calls = [tuple(plan.calls.values()) for plan in plans.values()]
    assert calls == [(16, 0), (0, 16), (14, 30), (0, 44)]
    assert plans["image alone, 16"].steps[0][0].guidance == engine.models.entry.image_guidance_scale


def test_image_arm_starts_every_frame_from_other_noise(engine: Engine) -> None:
    """With one noise for all frames the arm would stand still: eight equal frames, perfectly coherent."""
    noise = seeded_noise(engine.models.latents_shape(), 7)
    assert all(not torch.equal(noise[:, :, 0], noise[:, :, i]) for i in range(1, noise.shape[2]))
    image, _ = engine.models.denoisers("a red circle moving right on a teal background", "low quality")
    *_, last = sample(noise, arms(engine.models)["image alone, 16"], image=image)
    frames = engine.models.decode(last.latents).float()
    assert min((frames[0] - frames[i]).abs().mean().item() for i in range(1, len(frames))) > 1
