"""What a file is, by its first bytes. Its name and media type are the client's and decide nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from service.references.limits import refused

Kind = Literal["PNG", "JPEG", "WEBP", "MP4", "WebM"]  # MP4: MOV too, which is the same container
PICTURES: tuple[Kind, ...] = ("PNG", "JPEG", "WEBP")

HEAD_BYTES = 32
_ACCEPTED = "send a PNG, JPEG or WebP picture, or an MP4, WebM or MOV clip"
_PREFIXES: dict[bytes, Kind] = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"\x1a\x45\xdf\xa3": "WebM"}
_ATOMS = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"})  # MOV files of old cameras have no ftyp
_STILL_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF"}
_OTHERS = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"\0\0\x01\0": "ICO",
}


def kind_of(path: Path) -> Kind:
    """Raises InvalidParameter for every other kind."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise refused("is empty", _ACCEPTED)
    for prefix, kind in _PREFIXES.items():
        if head.startswith(prefix):
            return kind
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] in _ATOMS:
        if head[4:8] == b"ftyp" and (brand := _STILL_BRANDS.get(head[8:12])):
            raise refused(f"is {brand}", _ACCEPTED)
        return "MP4"
    name = next((f"is {name}" for prefix, name in _OTHERS.items() if head.startswith(prefix)), "is of an unknown kind")
    raise refused(name, _ACCEPTED)
