"""Reads request bodies within a limit. An upload that no model can use is refused before its bytes arrive."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException, Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import InvalidParameter

# Fields of other servers for images and other media.
MEDIA_FIELDS = ("input_reference", "image_reference", "reference_url", "video_reference", "audio_reference")

Watch = Callable[[bytes, bytearray], None]  # called with each chunk, and with the body up to it

_FIELD = f"({'|'.join(MEDIA_FIELDS)})"
# In JSON, a quote inside a text is escaped, so these match keys only.
_JSON_FIELD = re.compile(rf'(?<!\\)"{_FIELD}"\s*:\s*(?:"[^"]|\{{|\[)'.encode())
_URLENCODED_FIELD = re.compile(rf"(?:^|&){_FIELD}(?:(?:\[|%5[Bb])[^=&]*)?=[^&]".encode())


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_bytes(request: Request, limit: int) -> bytes:
    """Raises HTTPException 413 or 415, or InvalidParameter for an upload."""
    _refuse_compression(request)
    watch, raw = _watch(request, limit), bytearray()
    async for part in request.stream():
        raw += part
        watch(part, raw)
        if len(raw) > limit:
            raise HTTPException(413, f"The body is larger than {limit} bytes.")
    return bytes(raw)


def unsupported_media(name: str) -> InvalidParameter:
    message = f"'{name}' is not supported: the models of this server take no image, video or audio. Leave it out."
    return InvalidParameter(name, message, "unsupported_parameter")


def _refuse_compression(request: Request) -> None:
    encodings = ", ".join(request.headers.getlist("content-encoding"))
    if encodings.strip().lower() not in ("", "identity"):
        raise HTTPException(
            415,
            f"Content-Encoding '{encodings[:40]}' is not supported; send the body uncompressed, without this header.",
        )


def _watch(request: Request, limit: int) -> Watch:
    kind = media_type(request)
    if kind == "multipart/form-data":
        return _MultipartWatch(request.headers.get("content-type", ""))
    pattern = _URLENCODED_FIELD if kind == "application/x-www-form-urlencoded" else _JSON_FIELD
    announced = request.headers.get("content-length", "")
    will_not_fit = announced.isdigit() and int(announced[:18]) > limit

    def watch(_part: bytes, raw: bytearray) -> None:
        # A body that fits is parsed as a whole; this one would only get the error about its size.
        if (will_not_fit or len(raw) > limit) and (found := pattern.search(raw)):
            raise unsupported_media(found[1].decode())

    return watch


class _MultipartWatch:
    """Refuses a file, or a text in a field for media, at its first byte. Ignores malformed bodies."""

    def __init__(self, content_type: str) -> None:
        _, options = parse_options_header(content_type)
        self._header, self._value, self._name = bytearray(), bytearray(), ""
        callbacks: Any = {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_part_data": self._on_part_data,
        }
        boundary = options.get(b"boundary")
        self._parser = MultipartParser(boundary, callbacks) if boundary else None

    def __call__(self, part: bytes, _raw: bytearray) -> None:
        if self._parser is None:
            return
        try:
            self._parser.write(bytes(part))
        except FormParserError:
            self._parser = None

    def _on_part_begin(self) -> None:
        self._name = ""
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
                raise self._problem()
        self._header.clear()
        self._value.clear()

    def _on_part_data(self, _data: bytes, start: int, end: int) -> None:
        if end > start and self._name.partition("[")[0] in MEDIA_FIELDS:
            raise unsupported_media(self._name)

    def _problem(self) -> InvalidParameter:
        if self._name.partition("[")[0] in MEDIA_FIELDS:
            return unsupported_media(self._name)
        return InvalidParameter(
            self._name, f"File uploads are not supported ('{self._name}').", "unsupported_parameter"
        )
