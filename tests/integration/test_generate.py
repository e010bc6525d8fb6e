"""`ivmix generate` with its options, and what it refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.settings import MODELS_FILE
from tests.processes import clean_environment
from worker.child.video_encoder import read_mp4

PROMPT = "a red circle moving right on a teal background"


def generate(folder: Path, *options: str, **environment: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "service.cli", "generate", PROMPT, "-o", "out.mp4", *options]
    ran = subprocess.run(
        command, cwd=folder, env=clean_environment() | environment, capture_output=True, text=True, timeout=240
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_compare_shows_both_samplers_from_one_seed_and_sampler_options_reach_the_sampler(tmp_path: Path) -> None:
    options = ("--combination", "RR-IV", "--order", "goback_first", "--interval", "0", "1", "--image-every", "2")
    code, said = generate(tmp_path, "--steps", "4", "--seed", "7", "--compare", *options)
    assert code == 0, said
    # steps 2 and 3 have room above them: I and V in the first, V and V in the second, and four ordinary steps
    assert "seed 7" in said
    assert "network calls: 1 image, 7 video" in said
    frames = read_mp4(tmp_path / "out.mp4").astype(int)
    assert frames.shape == (8, 424, 768, 3)
    assert abs(frames[:, 40:, :384] - frames[:, 40:, 384:]).mean() > 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--sampler", "ddim", "--rho", "3"), "Sampler 'ddim' has no rho; leave it out, or use iv-mixed, fused."),
        (("--combination", "R-I"), "use 'goback_first'"),
        (("--model", "modelscope"), "`ivmix models fetch modelscope` downloads them"),
        (("--size", "large"), "Invalid value for 'size'"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said_in_one_line(tmp_path: Path, options: tuple[str, ...], complaint: str) -> None:
    code, said = generate(tmp_path, *options)
    assert code == 1
    assert complaint in said
    assert "Traceback" not in said


def test_model_that_cannot_be_loaded_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    shutil.copytree(MODELS_FILE.parents[2] / "demo" / "weights", tmp_path / "weights", dirs_exist_ok=True)
    (tmp_path / "weights" / "vae" / "extra.bin").touch()
    registry = MODELS_FILE.read_text().replace("../../demo/weights", "weights")
    (tmp_path / "models.toml").write_text(registry)
    code, said = generate(tmp_path, IVMIX_MODELS_FILE=str(tmp_path / "models.toml"))
    assert code == 1
    (line,) = said.strip().splitlines()
    assert "extra.bin; only safetensors are loaded" in line


@pytest.mark.parametrize("command", ["generate", "models fetch", "models verify"])
def test_help_names_the_command(tmp_path: Path, command: str) -> None:
    module = f"worker.{command.split()[-1]}"
    ran = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=240)
    assert f"Usage: ivmix {command} " in ran.stdout
