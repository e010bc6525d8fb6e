"""Clips as files: the mp4 that a user would get, and on request a copy without loss."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from worker.child import mp4

Frames = NDArray[np.uint8]  # (F, H, W, 3)

MP4, LOSSLESS = "mp4", "mkv"


def mp4_bytes(frames: Frames, fps: int) -> bytes:
    return _bytes_of("a.mp4", lambda file: mp4.write_mp4(frames, file, fps=fps))


def lossless_bytes(frames: Frames, fps: int) -> bytes:
    """FFV1 in Matroska, of RGB: every pixel as it was."""
    return _bytes_of("a.mkv", lambda file: _write_ffv1(frames, file, fps))


def read_frames(file: Path) -> Frames:
    """Frames (F, H, W, 3) of either file."""
    return mp4.read_mp4(file)


def _write_ffv1(frames: Frames, file: Path, fps: int) -> None:
    _, height, width, _ = frames.shape
    with av.open(str(file), "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("ffv1", rate=fps, options={"level": "3", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for i, pixels in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(format="bgr0")
            picture.pts, picture.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _bytes_of(name: str, write: Callable[[Path], None]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="ivmix-bench-") as folder:
        file = Path(folder) / name
        write(file)
        return file.read_bytes()


def frames_of(mp4_content: bytes) -> Frames:
    """Frames (F, H, W, 3) of an mp4 in memory."""
    with tempfile.TemporaryDirectory(prefix="ivmix-bench-") as folder:
        file = Path(folder) / "a.mp4"
        file.write_bytes(mp4_content)
        return read_frames(file)
