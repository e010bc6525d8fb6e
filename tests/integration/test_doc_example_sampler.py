"""The library example of docs/sampler.md runs as printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.doc_examples import DOCS, example
from tests.processes import clean_environment
from worker.child.mp4 import read_mp4


def test_the_example_makes_a_clip(tmp_path: Path) -> None:
    program = example(DOCS / "sampler.md", "python", "worker.models")
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr
    assert "100%" in ran.stderr  # the progress bar
    assert read_mp4(tmp_path / "clip.mp4").shape == (8, 384, 384, 3)
