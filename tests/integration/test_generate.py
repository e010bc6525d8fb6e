"""`ivmix generate` with its options, and what it refuses."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from service.settings import MODELS_FILE
from tests.commands import ivmix_here
from tests.processes import clean_environment
from worker.child.mp4 import read_mp4
from worker.generate import app

PROMPT = "a red circle moving right on a teal background"


def generate(folder: Path, *options: str, **environment: str) -> tuple[int, str]:
    """In this process; tests/integration/test_cli.py runs the command in a process."""
    command = ("generate", PROMPT, "-o", "out.mp4", *options)
    ran = ivmix_here(*command, cwd=folder, environment=clean_environment() | environment)
    return ran.returncode, ran.stdout + ran.stderr


def test_compare_shows_all_samplers_from_one_seed_and_sampler_options_reach_the_sampler(tmp_path: Path) -> None:
    options = ("--combination", "RR-IV", "--order", "goback_first", "--interval", "0", "1", "--image-every", "2")
    code, said = generate(tmp_path, "--steps", "4", "--seed", "7", "--compare", "ddim-image,ddim,iv-mixed", *options)
    assert code == 0, said
    assert "out.mp4: seed 7" in said
    assert re.search(r"^  ddim-image: 4 image calls, \d+\.\d s$", said, re.MULTILINE)
    assert re.search(r"^  ddim: 4 video calls, \d+\.\d s$", said, re.MULTILINE)
    # steps 2 and 3 have room above them: I and V in the first, V and V in the second, and four ordinary steps
    assert re.search(r"^  iv-mixed: 1 image \+ 7 video calls, \d+\.\d s$", said, re.MULTILINE)
    frames = read_mp4(tmp_path / "out.mp4").astype(int)
    assert frames.shape == (8, 464, 1152, 3)
    columns = [frames[:, 40:424, 384 * i : 384 * (i + 1)] for i in range(3)]
    assert all(abs(a - b).mean() > 1 for a, b in combinations(columns, 2))


def test_arm_of_a_comparison_is_the_clip_of_that_sampler_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has loaded torch and diffusers already."""
    monkeypatch.chdir(tmp_path)

    def run(*options: str) -> str:
        ran = CliRunner().invoke(app, [PROMPT, "-o", "out.mp4", "--steps", "3", "--seed", "7", *options])
        assert ran.exit_code == 0, ran.exception
        return ran.stdout

    assert "ddim: 3 image calls" in run("--sampler", "ddim", "--network", "image")
    clip = read_mp4(tmp_path / "out.mp4").astype(int)
    said = run("--compare", "official,ddim-image", "--zz", "2")
    # timesteps 999, 500 and 0 with T // N = 333: a zig-zag with the image network, one without, and one without effect
    assert re.search(r"^  official: 2 image \+ 8 video calls, \d+\.\d s$", said, re.MULTILINE)
    arm = read_mp4(tmp_path / "out.mp4").astype(int)[:, 40:424, 384:]
    assert abs(clip - arm).mean() < 2, "the same pixels, coded twice"


@pytest.mark.slow
def test_clip_starts_from_a_picture_and_from_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    y, x = np.mgrid[:384, :384]
    shown = np.full((384, 384, 3), (25, 128, 132), np.uint8)
    shown[(x - 192) ** 2 + (y - 100) ** 2 < 60**2] = (220, 30, 30)
    Image.fromarray(shown).save(tmp_path / "picture.jpg")

    def distance(*options: str) -> float:
        ran = CliRunner().invoke(app, [PROMPT, "-o", "out.mp4", "--seed", "7", "--sampler", "ddim", *options])
        assert ran.exit_code == 0, ran.exception
        assert "ddim: 4 video calls" in ran.stdout
        return np.abs(read_mp4(tmp_path / "out.mp4")[0].astype(int) - shown).mean()

    without = distance("--steps", "4")
    for file in ("picture.jpg", "out.mp4"):
        assert distance("--input-reference", file, "--strength", "0.25", "--steps", "16") < 0.4 * without


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--input-reference", "none.png"), "--input-reference none.png is no file."),
        (("--strength", "0.5"), "'strength' is given without input_reference"),
        (("--compare", "ddim,euler"), "unknown sampler 'euler'; use two or more of ddim, ddim-image, evs, freeinit"),
        (("--compare", "ddim"), "'ddim' is one sampler"),
        (("--compare", "ddim,ddim"), "'ddim' is named more than once"),
        (
            ("--compare", "ddim,iv-mixed", "--sampler", "ddim"),
            "--compare names its samplers; leave out --sampler ddim.",
        ),
        (("--compare", "ddim,iv-mixed", "--num-videos", "2"), "--compare makes one video; leave out --num-videos 2."),
        (("--compare", "ddim,zigzag", "--rho", "3"), "none of ddim, zigzag has rho"),
        (("--network", "image"), "Sampler 'iv-mixed' has no network; leave it out, or use ddim."),
        (
            ("--sampler", "ddim", "--rho", "3"),
            "Sampler 'ddim' has no rho; leave it out, or use iv-mixed, fused, official.",
        ),
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


@pytest.mark.parametrize(
    ("output", "complaint"), [("none/x.mp4", "there is no folder none"), (".", "it is a folder"), ("~nosuch/x", "home")]
)
def test_output_that_cannot_be_written_is_refused_before_anything_is_loaded(
    tmp_path: Path, output: str, complaint: str
) -> None:
    code, said = generate(tmp_path, "--steps", "1", "-o", output)
    assert code == 1
    (line,) = said.strip().splitlines()
    assert f"--output {output.partition('/')[0]}" in line.replace("'", "")
    assert complaint in line


def test_model_that_cannot_be_loaded_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    shutil.copytree(MODELS_FILE.parents[2] / "demo" / "weights", tmp_path / "weights", dirs_exist_ok=True)
    (tmp_path / "weights" / "vae" / "diffusion_pytorch_model.safetensors").write_text("<html>404</html>")
    registry = MODELS_FILE.read_text().replace("../../demo/weights", "weights")
    (tmp_path / "models.toml").write_text(registry)
    code, said = generate(tmp_path, IVMIX_MODELS_FILE=str(tmp_path / "models.toml"))
    assert code == 1
    (line,) = said.strip().splitlines()
    assert "vae/diffusion_pytorch_model.safetensors is a web page" in line


@pytest.mark.sample(1)
@pytest.mark.parametrize("command", ["generate", "models fetch", "models verify"])
def test_help_names_the_command(tmp_path: Path, command: str) -> None:
    module = f"worker.{command.split()[-1]}"
    ran = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=240)
    assert f"Usage: ivmix {command} " in ran.stdout
