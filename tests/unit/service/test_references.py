"""What is made of uploaded pictures and clips, and which are refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from service.errors import InvalidParameter
from service.jobs.reference import ReferenceFile, first_step, smallest_strength
from service.references import Limits, clip_process, sanitise
from service.references.clips import convert
from tests.reference_files import BLUE, RED, clip, frames_of, picture

LIMITS = Limits(bytes=2**20, pixels=2**20, frames=16)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def sanitised(data: bytes, target: Path) -> ReferenceFile:
    source = target.with_name("source")
    source.write_bytes(data)
    return sanitise(source, target, LIMITS)


def refusal(data: bytes, target: Path) -> str:
    with pytest.raises(InvalidParameter) as raised:
        sanitised(data, target)
    assert raised.value.param == "input_reference"
    return raised.value.message


def converted(data: bytes, target: Path, kind: str = "MP4") -> ReferenceFile:
    """A clip, in this process."""
    source = target.with_name("source")
    source.write_bytes(data)
    return convert(source, target, kind, LIMITS)


def near(pixel: Any, colour: tuple[int, ...], tolerance: int = 14) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, colour, strict=True))


GREY_RED, GREY_BLUE = 83, 44  # 0.299 R + 0.587 G + 0.114 B


@pytest.mark.parametrize(
    ("data", "colours"),
    [
        (picture(), (RED, BLUE)),
        (picture("JPEG", quality=95), (RED, BLUE)),
        (picture("JPEG", mode="CMYK", quality=95), (RED, BLUE)),
        (picture("JPEG", progressive=True, quality=95), (RED, BLUE)),
        (picture("WEBP", quality=95), (RED, BLUE)),
        (picture("WEBP", lossless=True), (RED, BLUE)),
        (picture(mode="P"), (RED, BLUE)),
        (picture(mode="L"), ((GREY_RED,) * 3, (GREY_BLUE,) * 3)),
        (picture(mode="RGBA"), (RED, BLUE)),
        (picture(size=(1, 1)), (BLUE, BLUE)),
    ],
    ids=["RGB", "JPEG", "CMYK", "progressive", "WebP", "lossless", "palette", "grey", "alpha", "one pixel"],
)
def test_every_kind_of_picture_becomes_a_png_in_rgb(data: bytes, colours: Any, target: Path) -> None:
    file = sanitised(data, target)
    with Image.open(target) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (file.width, file.height))
        pixels = image.getpixel((0, 0)), image.getpixel((image.width - 1, image.height - 1))
    assert (file.media_type, file.num_frames) == ("image/png", 1)
    assert near(pixels[0], colours[0])
    assert near(pixels[1], colours[1])


def test_transparent_parts_become_white(target: Path) -> None:
    file = io.BytesIO()
    Image.new("RGBA", (4, 4), (*RED, 0)).save(file, "PNG")
    sanitised(file.getvalue(), target)
    assert Image.open(target).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_of_grey_are_scaled_to_eight(target: Path) -> None:
    file = io.BytesIO()
    Image.frombytes("I;16", (4, 4), struct.pack("<16H", *[30_000] * 16)).save(file, "PNG")
    sanitised(file.getvalue(), target)
    assert near(Image.open(target).getpixel((0, 0)), (117, 117, 117), tolerance=1)


def test_a_picture_is_turned_upright_and_keeps_no_metadata(target: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise: left goes to the top
    exif[0x010F] = "secret camera"
    exif.get_ifd(0x8825)[29] = "secret place"  # GPS
    file = sanitised(picture("JPEG", exif=exif, comment=b"secret", quality=95), target)
    assert (file.width, file.height) == (48, 64)
    with Image.open(target) as image:
        assert near(image.getpixel((24, 2)), RED)
        assert near(image.getpixel((24, 61)), BLUE)
        assert (image.info, dict(image.getexif())) == ({}, {})
    assert b"secret" not in target.read_bytes()


def test_the_same_picture_gives_the_same_file(target: Path) -> None:
    assert sanitised(picture(), target) == sanitised(picture(), target)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


BOMB = png_header(50_000, 50_000) + chunk(b"IDAT", zlib.compress(bytes(1000)))
WEBP_BOMB = b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\0\xff\xff\0" + bytes(40)


def animation(kind: str) -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello", "of an unknown kind; send a PNG"),
        (animation("GIF"), "is GIF; send a PNG"),
        (b"\0\0\0\x1cftypheic" + bytes(40), "is HEIC"),
        (b"\0\0\0\x1cftypavif" + bytes(40), "is AVIF"),
        (animation("PNG"), "animated picture; send one of its frames"),
        (animation("WEBP"), "animated picture; send one of its frames"),
        (picture()[:60], "damaged PNG"),
        (picture(size=(300, 300))[:-60], "damaged PNG"),
        (picture("JPEG")[:300], "damaged JPEG"),
        (picture("WEBP")[:25], "damaged WEBP"),
        (b"\xff\xd8\xff" + bytes(100), "damaged JPEG"),
        (BOMB, "50000x50000 pixels, more than the limit of 1048576"),
        (WEBP_BOMB, "65536x65536 pixels, more than the limit"),
        (picture(size=(1, 40)), "over 20 times the other; crop it"),
        (picture("JPEG") + b"\xff\xda" * 200, "over 100 scans"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value[:24],
)
def test_what_cannot_be_used_is_refused_with_a_reason(data: bytes, message: str, target: Path) -> None:
    assert message in refusal(data, target)


def test_a_large_picture_is_scaled_down(target: Path) -> None:
    wide = Limits(bytes=2**20, pixels=2**23, frames=1)
    source = target.with_name("source")
    source.write_bytes(picture("JPEG", size=(2700, 1800)))
    file = sanitise(source, target, wide)
    assert 2**22 * 0.99 < file.width * file.height <= 2**22
    assert abs(file.width / file.height - 1.5) < 0.01


def test_a_clip_of_the_right_kind_keeps_its_frames_bit_by_bit(tmp_path: Path, target: Path) -> None:
    data = clip(tmp_path, frames=16)
    file = converted(data, target)
    assert (file.media_type, file.num_frames, file.width, file.height) == ("video/mp4", 16, 64, 48)
    assert [a.tobytes() for a in frames_of(target)] == [b.tobytes() for b in frames_of(tmp_path / "clip.mp4")]
    stored = target.read_bytes()
    assert not [word for word in (b"secret", b"x264", b"Lavf") if word in stored]
    assert b"x264" in data  # what the encoder writes about itself


def test_a_longer_clip_is_cut_and_another_codec_is_encoded_again(tmp_path: Path, target: Path) -> None:
    data = clip(tmp_path, "clip.webm", codec="libvpx", frames=18)
    file = converted(data, target, "WebM")
    assert file.num_frames == len(frames_of(target)) == LIMITS.frames
    first = frames_of(target)[0]
    assert near(first.getpixel((16, 30)), RED, 20)
    assert near(first.getpixel((50, 30)), BLUE, 20)
    assert file == converted(data, target, "WebM"), "an idempotency key compares the hash"


def test_a_turned_clip_becomes_upright(tmp_path: Path, target: Path) -> None:
    data = clip(tmp_path, frames=2)
    matrix = data.index(b"tkhd") + 44
    turned = struct.pack(">9I", 0, 0x10000, 0, 0xFFFF0000, 0, 0, 48 << 16, 0, 0x40000000)  # 90 degrees clockwise
    file = converted(data[:matrix] + turned + data[matrix + 36 :], target)
    assert (file.width, file.height) == (48, 64)
    first = frames_of(target)[0]
    assert near(first.getpixel((30, 8)), RED, 20)
    assert near(first.getpixel((30, 60)), BLUE, 20)


def sound() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame(format="s16", layout="mono", samples=1024)
        frame.planes[0].update(bytes(frame.planes[0].buffer_size))
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def test_clips_that_cannot_be_used_are_refused_with_a_reason(tmp_path: Path, target: Path) -> None:
    whole = clip(tmp_path, frames=12, crf="0")
    cases = [
        (b"\0\0\0\x18ftypmp42" + bytes(200), "damaged or incomplete"),
        (whole[: len(whole) // 2], "damaged or incomplete"),
        (whole.replace(b"avc1", b"tscc"), "codec"),
        (clip(tmp_path, size=(1100, 1000), frames=1), "more than the limit"),
        (sound(), "no video stream"),
    ]
    for data, message in cases:
        with pytest.raises(InvalidParameter, match=message):
            converted(data, target)


def test_a_clip_is_read_in_another_process(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = clip(tmp_path, frames=3)
    assert sanitised(data, target) == converted(data, target)
    assert "has no video stream" in refusal(sound(), target)
    monkeypatch.setattr(clip_process, "TIMEOUT_S", 0.01)
    assert "takes too long to read" in refusal(data, target)


def test_strength_and_steps_follow_diffusers() -> None:
    assert [first_step(50, strength) for strength in (1.0, 0.8, 0.5, 0.01)] == [0, 10, 25, 50]
    for steps in (1, 2, 3, 7, 16, 49, 50, 98, 200, 1000):
        least = smallest_strength(steps)
        assert first_step(steps, least) == steps - 1
        assert first_step(steps, least - 1e-4) == steps or least <= 1e-4
