"""The two videos of `make demo`, in their sizes, played by a real browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import browser
from worker.child.mp4 import Frames
from worker.compare import ComparedClip, write_comparison
from worker.video import write_mp4

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason=browser.MISSING)

RED, TEAL = (230, 30, 40), (25, 128, 132)


def clip() -> Frames:
    """8 frames of 384x384: a red square that moves over teal."""
    frames = np.full((8, 384, 384, 3), TEAL, np.uint8)
    for i, frame in enumerate(frames):
        frame[150:230, 100 + 20 * i : 180 + 20 * i] = RED
    return frames


def test_both_videos_play_to_their_end_in_their_colours(tmp_path: Path) -> None:
    write_mp4(clip(), tmp_path / "demo.mp4", fps=8)
    arms = [ComparedClip(name, clip(), {"image": 16, "video": 0}, 1.0) for name in ("ddim-image", "ddim", "iv-mixed")]
    write_comparison(arms, tmp_path / "compare.mp4", fps=8)
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "demo.mp4").read_bytes()[:2000])
    *both, broken = browser.play(tmp_path / "profile", *(tmp_path / f"{n}.mp4" for n in ("demo", "compare", "broken")))
    assert [video["size"] for video in both] == [[384, 384], [1152, 464]]
    for video in both:
        assert (video["ended"], video["error"]) == (True, None)
        assert video["seconds"] == pytest.approx(1.0, abs=0.05)
        assert np.abs(np.subtract(video["corner"], TEAL)).max() < 12
    assert broken["error"], "a browser that cannot show a video must report it here"
