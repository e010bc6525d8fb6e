"""The adapter of VBench, against a program that reads its options and writes its files. VBench itself needs a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.vbench import Dimension, measure
from tests.commands import ivmix_here

# Options and result file as in vbench/launch/evaluate.py and vbench/__init__.py of commit 45e79ec.
PROGRAM = """#!{python} -S
import argparse, json, os, sys
parser = argparse.ArgumentParser()
parser.add_argument("-m", choices=["vbench.launch.evaluate"], required=True)
for name in ("videos_path", "dimension", "output_path"):
    parser.add_argument("--" + name, required=True)
parser.add_argument("--mode", choices=["custom_input", "vbench_standard", "vbench_category"])
given = parser.parse_args()
names = [name for name in os.listdir(given.videos_path) if name.lower().endswith((".mp4", ".gif"))]
results = [{{"video_path": os.path.join(given.videos_path, name), "video_results": len(name)}} for name in names]
{change}
with open(os.path.join(given.output_path, "results_2026_eval_results.json"), "w") as file:
    json.dump({{given.dimension: [0.5, results]}}, file)
"""


def program(folder: Path, change: str = "") -> Path:
    path = folder / "python"
    path.write_text(PROGRAM.format(python=sys.executable, change=change))
    path.chmod(0o755)
    return path


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "longer.MP4", "note.txt"):
        (folder / name).touch()
    return folder


def test_dynamic_degree_comes_with_every_dimension(tmp_path: Path, videos: Path) -> None:
    found = measure(program(tmp_path), videos, ["imaging_quality"])
    expected = Dimension(0.5, {"a.mp4": 5.0, "longer.MP4": 10.0})
    assert found == {"dynamic_degree": expected, "imaging_quality": expected}


def test_the_command_prints_means_and_clips(tmp_path: Path, videos: Path) -> None:
    options = ["--python", str(program(tmp_path)), "--dimension", "imaging_quality"]
    ran = ivmix_here("bench", "vbench", str(videos), *options, cwd=tmp_path, environment={})
    assert (ran.returncode, ran.stderr) == (0, "")
    expected = {"mean": 0.5, "clips": {"a.mp4": 5, "longer.MP4": 10}}
    assert json.loads(ran.stdout) == {"dynamic_degree": expected, "imaging_quality": expected}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sys.exit(0)", r"VBench failed with dynamic_degree \(status 0\)"),
        ("sys.exit('out of memory')", r"\(status 1\):\nout of memory"),
        ("results.pop()", "differ for dynamic_degree in 1 clips"),
        ("results[0]['video_results'] = float('nan')", "not finite"),
        ("results[0] = 3", "in another format than 0.1.5"),
        ("given.dimension = 'other'", "in another format than 0.1.5"),
    ],
)
def test_failures_and_missing_clips_are_errors(tmp_path: Path, videos: Path, change: str, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        measure(program(tmp_path, change), videos, [])


def test_wrong_arguments_are_refused(tmp_path: Path, videos: Path) -> None:
    with pytest.raises(BenchmarkError, match="measures color of its own prompts only; of any clips: dynamic_degree, "):
        measure(program(tmp_path), videos, ["color"])
    with pytest.raises(BenchmarkError, match=r"no .mp4 or .gif"):
        measure(program(tmp_path), tmp_path, [])
    with pytest.raises(BenchmarkError, match="missing: no such file; install VBench in a separate environment"):
        measure(tmp_path / "missing", videos, [])
