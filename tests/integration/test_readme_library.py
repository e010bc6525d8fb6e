"""The researcher's ten lines of the README, run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.processes import clean_environment
from worker.child.video import read_mp4

README = Path(__file__).parents[2] / "README.md"


def test_the_ten_lines_make_a_clip(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    program = next(block for block in blocks if "worker.networks.models" in block)
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
