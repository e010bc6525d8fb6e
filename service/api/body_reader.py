"""Reads request bodies within a limit. A file is written to a folder as it arrives, and media that no model can use are
refused before their bytes arrive."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.api.uploads import UploadedFile, too_large
from service.errors import InvalidParameter

REFERENCE = "input_reference"
# Fields of other servers for images and other media.
MEDIA_FIELDS = ("image_reference", "reference_url", "video_reference", "audio_reference")

# In JSON, a quote inside a text is escaped, so these match keys only.
_JSON_KEY = r'(?<!\\)"(%s)"\s*:\s*(?:"[^"]|\{|\[)'
_URLENCODED_KEY = r"(?:^|&)(%s)(?:(?:\[|%%5[Bb])[^=&]*)?=[^&]"


@dataclass
class Upload:
    """What becomes of the file in `input_reference`.

    Args:
        make_folder: called when the file begins; raises if there is no place for it.
        most_bytes: limit of the file.
        most_data_url_bytes: limit of a body that contains it as a data URL.
    """

    make_folder: Callable[[], Path]
    most_bytes: int
    most_data_url_bytes: int
    path: Path | None = None  #: the file, once it has begun


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_bytes(request: Request, limit: int, upload: Upload | None = None) -> bytes:
    """The body. The bytes of a file in `input_reference` are not in it, but in `upload.path`.

    Args:
        upload: None if this endpoint takes no files.

    Raises:
        HTTPException: 413 or 415.
        BodyTooLarge: the file is too large.
        InvalidParameter: another file, or media that no model takes.
    """
    _refuse_compression(request)
    kind = _MultipartWatch if media_type(request) == "multipart/form-data" else _TextWatch
    watch, raw = kind(request, limit, upload), bytearray()
    try:
        async for part in request.stream():
            raw += watch.keep(part)
            watch.check(raw)
            if len(raw) > watch.limit:
                raise HTTPException(413, f"The body is larger than {watch.limit} bytes.")
    finally:
        watch.close()
    return bytes(raw)


def unsupported_media(name: str) -> InvalidParameter:
    message = f"'{name}' is not supported; send a picture or clip as '{REFERENCE}', or leave it out."
    return InvalidParameter(name, message, "unsupported_parameter")


def _refuse_compression(request: Request) -> None:
    encodings = ", ".join(request.headers.getlist("content-encoding"))
    if encodings.strip().lower() not in ("", "identity"):
        raise HTTPException(
            415,
            f"Content-Encoding '{encodings[:40]}' is not supported; send the body uncompressed, without this header.",
        )


class _Watch:
    """Looks at a body while it arrives."""

    def __init__(self, request: Request, limit: int, upload: Upload | None) -> None:
        announced = request.headers.get("content-length", "")
        self._length = int(announced[:18]) if announced.isdigit() else 0
        self._upload = upload
        self.limit = limit  # of the bytes that are kept in memory

    def keep(self, part: bytes) -> bytes | bytearray:
        """What of the part belongs to the body that is parsed later."""
        return part

    def check(self, raw: bytearray) -> None:
        """Called with the body so far."""

    def close(self) -> None:
        """Called at the end in any case."""


class _TextWatch(_Watch):
    """JSON and urlencoded bodies. One that fits is parsed as a whole; in a larger one, the field for media counts."""

    def __init__(self, request: Request, limit: int, upload: Upload | None) -> None:
        super().__init__(request, limit, upload)
        key = _URLENCODED_KEY if media_type(request) == "application/x-www-form-urlencoded" else _JSON_KEY
        self._media = re.compile((key % "|".join(MEDIA_FIELDS)).encode())
        self._reference = re.compile((key % REFERENCE).encode())

    def check(self, raw: bytearray) -> None:
        if max(self._length, len(raw)) <= self.limit:
            return
        if found := self._media.search(raw):
            raise unsupported_media(found[1].decode())
        if self._upload and self.limit < self._upload.most_data_url_bytes and self._reference.search(raw):
            self.limit = self._upload.most_data_url_bytes
            if max(self._length, len(raw)) > self.limit:
                raise HTTPException(
                    413,
                    f"The body with a data URL in '{REFERENCE}' is larger than {self.limit} bytes; send the file in a "
                    "multipart form.",
                )


class _MultipartWatch(_Watch):
    """Writes the file in `input_reference` to its folder, and refuses other files and media at their first byte.

    Malformed bodies are kept: their parser refuses them.
    """

    def __init__(self, request: Request, limit: int, upload: Upload | None) -> None:
        super().__init__(request, limit, upload)
        _, options = parse_options_header(request.headers.get("content-type", ""))
        self._header, self._value, self._name, self._is_file = bytearray(), bytearray(), "", False
        self._file: UploadedFile | None = None
        self._part, self._taken = b"", list[tuple[int, int]]()
        callbacks: Any = {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_part_data": self._on_part_data,
        }
        boundary = options.get(b"boundary")
        self._parser = MultipartParser(boundary, callbacks) if boundary else None

    def keep(self, part: bytes) -> bytes | bytearray:
        """The part without the bytes of the file: what is left is a form with an empty file."""
        if self._parser is None:
            return part
        self._part = bytes(part)
        self._taken.clear()
        try:
            self._parser.write(self._part)
        except FormParserError:
            self._parser = None
        rest = bytearray(self._part)
        for start, end in reversed(self._taken):
            del rest[start:end]
        return rest

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _on_part_begin(self) -> None:
        self._name, self._is_file = "", False
        self._header.clear()
        self._value.clear()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self._name = options.get(b"name", b"").decode(errors="replace")[:80]
            if options.get(b"filename"):
                self._begin_file()
            elif self._upload and self._name.partition("[")[0] == REFERENCE:
                self.limit = max(self.limit, self._upload.most_data_url_bytes)  # as text
        self._header.clear()
        self._value.clear()

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if end > start and self._name.partition("[")[0] in MEDIA_FIELDS:
            raise unsupported_media(self._name)
        if self._is_file and self._file is not None:
            self._file.write(memoryview(data)[start:end])
            # What looked like a boundary at the end of the part before is in another buffer, and stays in the body.
            if data is self._part:
                self._taken.append((start, end))

    def _begin_file(self) -> None:
        if self._name.partition("[")[0] in MEDIA_FIELDS:
            raise unsupported_media(self._name)
        upload = self._upload
        if upload is None or self._name != REFERENCE:
            message = f"File uploads are not supported ('{self._name}')."
            raise InvalidParameter(self._name, message, "unsupported_parameter")
        if self._file is not None:
            raise InvalidParameter(REFERENCE, f"'{REFERENCE}' is given more than once; send one file.")
        if self._length > upload.most_bytes + self.limit:
            raise too_large(REFERENCE, upload.most_bytes)
        upload.path = upload.make_folder() / "upload"
        self._file, self._is_file = UploadedFile(upload.path, REFERENCE, upload.most_bytes), True
