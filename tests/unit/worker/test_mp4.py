from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from worker.child import mp4

RED, TEAL = (230, 30, 40), (25, 128, 132)


def clip(frames: int = 8, size: tuple[int, int] = (96, 64)) -> mp4.Frames:
    """A red square on teal that moves 6 px to the right every frame; size is (width, height)."""
    pixels = np.empty((frames, size[1], size[0], 3), np.uint8)
    pixels[:] = TEAL
    for i in range(frames):
        pixels[i, 16:40, 6 * i : 6 * i + 24] = RED
    return pixels


def test_mp4_holds_the_frames_and_their_colours(tmp_path: Path) -> None:
    mp4.write_mp4(clip(), tmp_path / "a.mp4", fps=8)
    back = mp4.read_mp4(tmp_path / "a.mp4").astype(int)
    assert back.shape == (8, 64, 96, 3)
    # the middle of each area; a wrong colour matrix shifts teal by 10 and more
    for i in range(8):
        assert np.abs(back[i, 24:32, 6 * i + 8 : 6 * i + 16] - RED).mean() < 5
        assert np.abs(back[i, 50:60, 80:90] - TEAL).mean() < 5


def test_mp4_is_what_every_browser_plays(tmp_path: Path) -> None:
    mp4.write_mp4(clip(), tmp_path / "a.mp4", fps=8)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.average_rate, stream.frames, float(stream.duration * stream.time_base)) == (8, 8, 1.0)
        assert stream.codec_context.colorspace == 1  # BT.709, said in the file
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays while it loads


def test_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        mp4.write_mp4(clip(), tmp_path / name, fps=8)
    other = clip()
    other[3] = 0
    mp4.write_mp4(other, tmp_path / "c.mp4", fps=8)
    a, b, c = ((tmp_path / f"{name}.mp4").read_bytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize("shape", [(0, 64, 64, 3), (2, 63, 64, 3), (2, 64, 63, 3)])
def test_frames_that_yuv420p_cannot_hold_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="both sides must be even"):
        mp4.write_mp4(np.zeros(shape, np.uint8), tmp_path / "a.mp4", fps=8)


def test_thumbnail_is_the_middle_frame(tmp_path: Path) -> None:
    mp4.write_thumbnail(clip(), tmp_path / "a.webp")
    with Image.open(tmp_path / "a.webp") as picture:
        assert (picture.format, picture.size) == ("WEBP", (96, 64))
        assert np.abs(np.asarray(picture.convert("RGB"))[24:32, 32:40].astype(int) - RED).mean() < 12


def test_spritesheet_shows_every_frame_in_rows(tmp_path: Path) -> None:
    mp4.write_spritesheet(clip(6), tmp_path / "a.jpg", columns=4, width=96)
    with Image.open(tmp_path / "a.jpg") as sheet:
        assert (sheet.format, sheet.size) == ("JPEG", (4 * 96, 2 * 64))
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    assert np.abs(pixels[64 + 24 : 64 + 32, 96 + 32 : 96 + 40] - RED).mean() < 12  # frame 5: second row, second column
    assert pixels[64:, 2 * 96 + 16 :].max() < 12  # no frames 6 and 7


def test_side_by_side_keeps_both_clips_under_their_titles() -> None:
    both = mp4.side_by_side([clip(), clip()[:, ::-1]], ["left", "right"], band=40)
    assert both.shape == (8, 104, 192, 3)
    assert np.array_equal(both[:, 40:, :96], clip())
    assert np.array_equal(both[:, 40:, 96:], clip()[:, ::-1])
    assert both[0, :40].max() > 200  # the titles are legible


def test_captions_are_below_the_clips_and_fit_their_columns() -> None:
    long = "20 image + 36 video calls, 123.4 s"
    three = mp4.side_by_side([clip()] * 3, ["a", "b", "c"], ["", long, ""], band=40)
    assert three.shape == (8, 144, 288, 3)
    assert np.array_equal(three[:, 40:104], np.concatenate([clip()] * 3, axis=2))
    written = (three[0, 104:] > 100).any(axis=(0, 2)).nonzero()[0]
    assert 96 <= written.min() < 110
    assert 178 < written.max() < 192
