"""Clips: the first frames as H.264 in MP4, without sound and metadata. Imports PyAV, and is run by `clip_process`.

A clip that is already such a file keeps its frames bit by bit; any other is encoded again.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av as pyav
from av.bitstream import BitStreamFilterContext
from av.error import FFmpegError
from av.stream import Disposition

from service.errors import InvalidParameter
from service.jobs.reference import ReferenceFile
from service.references.clip_process import REFUSED
from service.references.limits import STORED_CLIP_PIXELS, Limits, refused, scaled, sha256_of

av: Any = pyav  # its types are incomplete
Frame = Any  # av.VideoFrame
CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4", "prores", "mjpeg"})
DEMUXERS = {"MP4": "mov", "WebM": "matroska"}
FRAME_PIXELS = 4096 * 2304  # a 4K frame
CPU_S, WALL_S = 90, 60.0
MEMORY_BYTES = 3 * 2**30
CRF = "12"  # visually the same
SEI = "6"  # type of the units of an H.264 stream that hold what cameras and encoders write about themselves
WITHOUT_DATES = {"fflags": "+bitexact", "movflags": "+faststart"}


def convert(source: Path, target: Path, kind: str, limits: Limits) -> ReferenceFile:
    """As `sanitise`, for a clip."""
    clip = _Clip(source, kind, limits)
    try:
        copied = clip.copy(target) if clip.is_storable else None
        frames, width, height = copied or clip.encode(target)
    except InvalidParameter:
        raise
    except (FFmpegError, EOFError, ValueError, IndexError) as e:
        raise refused("is a damaged clip", "save it again as MP4 with H.264") from e
    except OSError as e:  # the limit of the file's size
        raise refused("has too much detail to be stored", "send a shorter or smaller clip") from e
    return ReferenceFile(
        sha256=sha256_of(target), media_type="video/mp4", num_frames=frames, width=width, height=height
    )


class _Clip:
    """Reads one file. Every pass opens it again."""

    def __init__(self, source: Path, kind: str, limits: Limits) -> None:
        self._source, self._demuxer, self._limits = source, DEMUXERS[kind], limits
        self._deadline = time.monotonic() + WALL_S
        try:
            with self._open() as (container, stream):
                context = stream.codec_context
                self._rate = stream.average_rate or Fraction(8)
                self._announced = stream.frames
                self._shape = float(stream.sample_aspect_ratio or 1) or 1.0
                self._size = context.width, context.height
                is_mp4 = container.format.name.startswith("mov")
                self.is_storable = is_mp4 and context.name == "h264" and context.pix_fmt == "yuv420p"
        except (FFmpegError, EOFError, ValueError) as e:
            raise refused("is a damaged or incomplete clip", "save it again as MP4 with H.264") from e
        self._check_size(*self._size)
        self.is_storable &= self._shape == 1 and self._size == scaled(*self._size, STORED_CLIP_PIXELS)

    def copy(self, target: Path) -> tuple[int, int, int] | None:
        """Copy the video stream as it is. None if its frames are too many, or turned."""
        count = 0
        for frame in self._frames(self._limits.frames + 1):
            count += 1
            if count > self._limits.frames or frame.rotation:
                return None
        with self._open() as (_, stream), av.open(str(target), "w", format="mp4", options=WITHOUT_DATES) as output:
            copy = output.add_stream_from_template(stream)
            copy.metadata.clear()
            without_sei: Any = BitStreamFilterContext(f"filter_units=remove_types={SEI}", stream)
            for packet in stream.container.demux(stream):
                for clean in without_sei.filter(packet if packet.size else None):
                    clean.stream = copy
                    output.mux(clean)
        return count, self._size[0], self._size[1]

    def encode(self, target: Path) -> tuple[int, int, int]:
        """Encode the first frames again: upright, with square pixels, in bounds."""
        count, size, stream = 0, (0, 0), None
        rate = self._rate.limit_denominator(1001) if 1 <= self._rate <= 240 else Fraction(8)
        width, height = scaled(round(self._size[0] * self._shape) or 1, self._size[1], STORED_CLIP_PIXELS)
        even = max(2, width // 2 * 2), max(2, height // 2 * 2)  # H.264 halves the colours
        with av.open(str(target), "w", format="mp4", options=WITHOUT_DATES) as output:
            for frame in self._frames(self._limits.frames):
                upright = _upright(frame.reformat(*even, format="yuv420p", interpolation="LANCZOS"), frame.rotation)
                if stream is None:
                    size = upright.width, upright.height
                    stream = _encoder(output, size, rate)
                upright.pts, upright.time_base, count = count, 1 / rate, count + 1
                output.mux(stream.encode(upright))
            if stream is None:
                raise refused("has no frames")
            output.mux(stream.encode())
        return count, size[0], size[1]

    def _frames(self, most: int) -> Generator[Frame]:
        """The first frames. Raises InvalidParameter for a damaged one, and for a file that ends before its end."""
        count = packets = 0
        with self._open() as (container, stream):
            for packet in container.demux(stream):
                packets += packet.size > 0
                for frame in packet.decode():
                    self._check_time()
                    self._check_size(frame.width, frame.height)
                    if frame.is_corrupt:
                        raise refused("is a damaged clip", "save it again as MP4 with H.264")
                    yield frame
                    count += 1
                    if count == most:
                        return
        if not count:
            raise refused("has no frames")
        if packets < self._announced:
            raise refused(f"ends after {packets} of its {self._announced} frames", "send the whole file")

    @contextmanager
    def _open(self) -> Generator[tuple[Any, Any]]:
        """The container and its video stream. Through a Python file, FFmpeg can open nothing else."""
        with self._source.open("rb") as file, closing(av.open(file, format=self._demuxer)) as container:
            streams = [
                stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic
            ]
            if not streams:
                raise refused("has no video stream")
            stream = streams[0]
            if stream.codec_context.name not in CODECS:
                raise refused(f"has the codec {stream.codec_context.name}", "save it as MP4 with H.264")
            stream.codec_context.options = {"max_pixels": str(FRAME_PIXELS)}
            stream.codec_context.thread_count = 2
            yield container, stream

    def _check_size(self, width: int, height: int) -> None:
        most = min(self._limits.pixels, FRAME_PIXELS)
        Limits(self._limits.bytes, most, self._limits.frames).check_size(width, height)

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise refused("takes too long to read", "send a shorter or smaller clip")


def _encoder(output: Any, size: tuple[int, int], rate: Fraction) -> Any:  # PyAV's types do not know their fields
    stream = output.add_stream("libx264", rate=rate)
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    # One thread, so that nothing in the file depends on timing: an idempotency key compares its hash.
    stream.options = {"crf": CRF, "preset": "veryfast", "threads": "1"}
    return stream


def _upright(frame: Frame, rotation: int) -> Frame:
    """Turned counter-clockwise by `rotation` degrees, as the file asks. All frames get the size of the first one."""
    return av.VideoFrame.from_image(frame.to_image().rotate(rotation, expand=True)) if rotation else frame


def main(arguments: list[str]) -> int:
    """`python -m service.references.clips SOURCE TARGET KIND BYTES PIXELS FRAMES`, prints the ReferenceFile as JSON."""
    source, target, kind, *numbers = arguments
    limits = Limits(*map(int, numbers))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * limits.bytes, 4 * limits.bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        print(convert(Path(source), Path(target), kind, limits).model_dump_json())  # noqa: T201  # to the other process
    except InvalidParameter as e:
        print(e.message)  # noqa: T201
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
