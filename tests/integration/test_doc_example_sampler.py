"""The library examples of docs/sampler.md run as printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.doc_examples import DOCS, example
from worker.child.mp4 import read_mp4


def test_the_example_makes_a_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process, which has loaded torch and diffusers already."""
    program = example(DOCS / "sampler.md", "python", "from tqdm.auto import tqdm")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(program, names)
    assert "100%" in capfd.readouterr().err  # the progress bar
    assert read_mp4(tmp_path / "clip.mp4").shape == (8, 384, 384, 3)


@pytest.mark.slow
def test_the_example_that_starts_from_a_picture_makes_a_clip_that_begins_like_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = np.full((96, 96, 3), 240, np.uint8)
    shown[36:60, 40:64] = (250, 215, 30)
    Image.fromarray(shown).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    exec(example(DOCS / "sampler.md", "python", "read_frames"), {"__name__": "__main__"})
    first, *_ = read_mp4(tmp_path / "from_picture.mp4").astype(int)
    assert first.shape == (384, 384, 3)
    assert np.abs(first - shown.repeat(4, 0).repeat(4, 1)).mean() < 15
