"""The library example of docs/sampler.md runs as printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.doc_examples import DOCS, example
from worker.child.mp4 import read_mp4


def test_the_example_makes_a_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process, which has loaded torch and diffusers already."""
    program = example(DOCS / "sampler.md", "python", "worker.models")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(program, names)
    assert "100%" in capfd.readouterr().err  # the progress bar
    assert read_mp4(tmp_path / "clip.mp4").shape == (8, 384, 384, 3)
