"""Pictures: PNG, JPEG and WebP become a PNG in RGB, upright and without metadata. Imports Pillow."""

from __future__ import annotations

import io
import mmap
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms

from service.errors import InvalidParameter
from service.jobs.reference import ReferenceFile
from service.references.kinds import Kind
from service.references.limits import STORED_PIXELS, Limits, refused, scaled, sha256_of

cms: Any = ImageCms  # its types are incomplete
MOST_SCANS = 100  # of a progressive JPEG; cameras write about ten, and each costs a pass over all pixels
ORIENTATION = 0x0112  # EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Image.MAX_IMAGE_PIXELS = None  # `Limits` decides, before anything is decoded


def sanitise_picture(source: Path, target: Path, kind: Kind, limits: Limits) -> ReferenceFile:
    """Write the picture to `target`. Transparent parts become white, and a large picture is scaled down.

    Raises:
        InvalidParameter: too many pixels, animated, or damaged.
    """
    if kind == "WEBP":
        _check_webp_header(source, limits)  # its decoder takes the memory when it is opened
    if kind == "JPEG":
        _check_scans(source)
    try:
        clean = _read(source, kind, limits)
    except InvalidParameter:
        raise
    except Exception as e:  # Pillow raises errors of many kinds for damaged files
        raise refused(f"is a damaged {kind} picture") from e
    clean.save(target, "PNG", compress_level=3)
    width, height = clean.size
    return ReferenceFile(sha256=sha256_of(target), media_type="image/png", width=width, height=height)


def _read(source: Path, kind: Kind, limits: Limits) -> Image.Image:
    with Image.open(source, formats=[kind]) as image:  # reads the header only
        limits.check_size(*image.size)
        # MPO is a JPEG with further pictures, such as the two of a 3D camera: the first one is the picture.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise refused("is an animated picture", "send one of its frames, or all as an MP4 clip")
        size = scaled(*image.size, STORED_PIXELS)
        image.draft(None, size)  # a JPEG can be read at a half or a quarter of its size
        orientation = image.getexif().get(ORIENTATION)
        clean = _srgb(_flattened(image), image.info.get("icc_profile"))
    if clean.size != size:
        clean = clean.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if orientation in _TURNS:
        clean = clean.transpose(_TURNS[orientation])
    clean.info = {}
    return clean


def _flattened(image: Image.Image) -> Image.Image:
    """In a mode without palette, alpha and 16 bits: L, RGB or CMYK."""
    if image.mode.startswith("I"):  # 16 bits of grey; converting would cut them off at 255
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        return white.convert("RGB")
    if image.mode in ("L", "CMYK"):
        return image.convert(image.mode)
    return image.convert("RGB")


def _srgb(image: Image.Image, profile: Any) -> Image.Image:
    """In RGB. The colours are converted as the profile says, which the stored file does not have any more."""
    if isinstance(profile, bytes) and profile:
        try:
            own = cms.ImageCmsProfile(io.BytesIO(profile))
            converted = cms.profileToProfile(image, own, cms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):  # damaged, or of another kind of colours
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")


def _check_webp_header(source: Path, limits: Limits) -> None:
    """Layout: the WebP container specification, chunks VP8X, VP8L and VP8."""
    with source.open("rb") as file:
        head = file.read(30)
    if len(head) < 30:
        raise refused("is a damaged WEBP picture")
    match head[12:16]:
        case b"VP8X":
            width = 1 + int.from_bytes(head[24:27], "little")
            height = 1 + int.from_bytes(head[27:30], "little")
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case _:
            width = int.from_bytes(head[26:28], "little") & 0x3FFF
            height = int.from_bytes(head[28:30], "little") & 0x3FFF
    limits.check_size(width, height)


def _check_scans(source: Path) -> None:
    """A small file can ask for thousands of passes over all its pixels."""
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = -1
        for _ in range(MOST_SCANS + 1):
            at = data.find(b"\xff\xda", at + 1)
            if at < 0:
                return
    raise refused(f"is a JPEG with over {MOST_SCANS} scans", "save it again with usual settings")
