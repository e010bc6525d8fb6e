"""A response with the bytes of a stored file."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from fastapi.responses import StreamingResponse


class FileStream(StreamingResponse):
    """Closes the file however the response ends, also if the client has gone before the first byte."""

    def __init__(self, chunks: Generator[bytes], status: int, headers: Mapping[str, str]) -> None:
        super().__init__(chunks, status, headers)
        self._chunks = chunks

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._chunks.close()
