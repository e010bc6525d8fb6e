"""Downloads a file of a hub, or reads its start. No torch."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import httpx2
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get  # pyright: ignore[reportUnknownVariableType]
from huggingface_hub.utils import (
    build_hf_headers,  # pyright: ignore[reportUnknownVariableType]
    hf_raise_for_status,
    http_stream_backoff,  # pyright: ignore[reportUnknownVariableType]
)

from service.catalog.weight_files import Source, file_sha256
from service.errors import ConfigurationError
from worker.hub_listing import RemoteFile, printable


def fetch_file(source: Source, revision: str, file: RemoteFile, target: Path, expected: str | None) -> str:
    """Download to `target` unless it is there already; returns its sha256."""
    if target.exists() and target.stat().st_size == file.size and expected in (None, found := file_sha256(target)):
        return found
    if expected is not None and file.sha256 not in (None, expected):
        raise ConfigurationError(
            f"{source.repo}: {file.path} at {revision} has sha256 {file.sha256}, expected {expected}; not fetched"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    try:
        if part.is_symlink():
            part.unlink()  # writing would follow it
        size = part.stat().st_size if part.exists() else 0
        done = size if size <= file.size else 0
        with part.open("ab" if done else "wb") as stream:
            http_get(
                hf_hub_url(str(source.repo), file.path, revision=revision),
                cast(BinaryIO, LimitedFile(stream, file.size)),
                resume_size=done,
                headers=build_hf_headers(),
                expected_size=file.size,
                displayed_filename=file.path,
            )
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as e:
        raise ConfigurationError(
            f"{source.repo}: {file.path} was interrupted ({printable(e)}); run the command again to resume"
        ) from e
    found = file_sha256(part)
    if expected is not None and found != expected:
        part.unlink()
        raise ConfigurationError(
            f"{source.repo}: {file.path} at {revision} has sha256 {found}, expected {expected}; deleted"
        )
    part.replace(target)
    return found


class LimitedFile:
    """A file that refuses more bytes than were announced, so that no server can fill the disk."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file, self._limit = file, limit

    def write(self, data: bytes) -> int:
        if self._file.tell() + len(data) > self._limit:
            raise OSError(f"the server sent more than the announced {self._limit} bytes")
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class Start:
    """The bytes of a file from its beginning, as far as they are read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._buffer = chunks, bytearray()

    def read(self, size: int) -> bytes:
        """The next bytes; fewer only at the end of the file."""
        while len(self._buffer) < size and (chunk := next(self._chunks, b"")):
            self._buffer += chunk
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data


@contextmanager
def read_start(repo: str, revision: str, file: RemoteFile, limit: int) -> Generator[Start]:
    """At most `limit` bytes are asked for. Raises ConfigurationError naming the file."""
    headers = {**build_hf_headers(), "Range": f"bytes=0-{min(limit, max(file.size, 1)) - 1}"}
    url = hf_hub_url(repo, file.path, revision=revision)
    try:
        with http_stream_backoff("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
            hf_raise_for_status(response)
            yield Start(response.iter_bytes())
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as e:
        raise ConfigurationError(f"{repo}/{file.path} cannot be read: {printable(e)}") from e
