"""Pictures and clips for tests of references, made in memory."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
from PIL import Image

RED, BLUE = (230, 20, 20), (20, 20, 230)


def picture(kind: str = "PNG", *, mode: str = "RGB", size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    """The left half is red, the right half blue, as far as the mode has colours."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    file = io.BytesIO()
    image = image.quantize(8) if mode == "P" else image.convert(mode)
    image.save(file, kind, **options)
    return file.getvalue()


def clip(
    folder: Path,
    name: str = "clip.mp4",
    *,
    frames: int = 20,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    **options: str,
) -> bytes:
    """As `picture`, with a green square that moves to the right. Its metadata have the word `secret`."""
    path = folder / name
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "secret"
        stream: Any = container.add_stream(codec, rate=8)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"threads": "1"} | options
        still = Image.open(io.BytesIO(picture(size=size)))
        for i in range(frames):
            image = still.copy()
            left = (size[0] - 8) * i // max(1, frames - 1)
            image.paste((20, 230, 20), (left, 0, left + 8, 8))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return path.read_bytes()


def frames_of(path: Path) -> list[Image.Image]:
    with av.open(str(path)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]
