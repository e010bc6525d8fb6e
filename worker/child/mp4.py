"""Frames -> files: the mp4, a thumbnail and a spritesheet. The same frames give the same bytes."""

# pyright: reportUnknownMemberType=false
# PyAV is typed in part: its packets are generic without arguments.
from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Frames = NDArray[np.uint8]  # (F, H, W, 3)

BT709 = 1  # H.273 code point for primaries and transfer


def write_mp4(frames: Frames, path: Path, *, fps: int) -> None:
    """H.264 in yuv420p with the index in front, so that every browser plays it while it loads.

    Raises ValueError for odd sides, which yuv420p cannot hold.
    """
    count, height, width, _ = frames.shape
    if count == 0 or height % 2 or width % 2:
        raise ValueError(f"frames {frames.shape}: there must be at least one, and both sides must be even")
    # One thread and no clock in the file: the same frames give the same bytes.
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "17", "preset": "medium", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, fps)
        context = stream.codec_context
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries = context.color_trc = BT709
        for i, pixels in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            picture.pts, picture.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def read_mp4(path: Path) -> Frames:
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(pictures).astype(np.uint8, copy=False)


def side_by_side(
    clips: Sequence[Frames], titles: Sequence[str], captions: Sequence[str] = (), *, band: int = 40
) -> Frames:
    """Clips of one shape next to each other: titles in a band above them, captions, if any, in one below.

    Args:
        band: height of a band in pixels, even.
    """
    count, _, width, _ = clips[0].shape
    rows = [np.concatenate(clips, axis=2)]
    for place, texts in ((0, titles), (2, captions)):
        if texts:
            row = np.asarray(_band(texts, width, band))
            rows.insert(place, np.broadcast_to(row, (count, *row.shape)))
    return np.concatenate(rows, axis=1)


def _band(texts: Sequence[str], width: int, height: int) -> Image.Image:
    """Each text in the middle of its column of `width` pixels, all in the largest font in which the widest one fits."""
    band = Image.new("RGB", (width * len(texts), height), (24, 24, 27))
    draw, size = ImageDraw.Draw(band), height // 2
    widest = max(draw.textlength(text, font=ImageFont.load_default(size=size)) for text in texts)
    font = ImageFont.load_default(size=size * min(1.0, (width - height / 4) / widest))
    for i, text in enumerate(texts):
        draw.text(((i + 0.5) * width, height / 2), text, fill=(235, 235, 235), font=font, anchor="mm")
    return band


def write_thumbnail(frames: Frames, path: Path) -> None:
    """The middle frame as WebP."""
    Image.fromarray(frames[len(frames) // 2]).save(path, "WEBP", quality=85)


def write_spritesheet(frames: Frames, path: Path, *, columns: int = 4, width: int = 192) -> None:
    """Every frame, small, row by row, as JPEG."""
    height = round(frames.shape[1] * width / frames.shape[2])
    small = [Image.fromarray(f).resize((width, height), Image.Resampling.LANCZOS) for f in frames]
    rows = -(-len(small) // columns)
    sheet = Image.new("RGB", (min(columns, len(small)) * width, rows * height))
    for i, picture in enumerate(small):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    sheet.save(path, "JPEG", quality=88)
