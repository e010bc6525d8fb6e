"""The ETag that S3 servers compute for an upload: the MD5 of the bytes, or of the MD5s of its parts.

Not every server follows this (one that encrypts with its own keys does not), so a different ETag proves nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path


def expected_etag(path: Path, *, part_bytes: int) -> str:
    """The ETag without quotes. Files of `part_bytes` or more are uploaded in parts of that size."""
    digests = [hashlib.md5(part, usedforsecurity=False) for part in _parts(path, part_bytes)]
    if path.stat().st_size < part_bytes:
        return digests[0].hexdigest()
    combined = hashlib.md5(b"".join(digest.digest() for digest in digests), usedforsecurity=False)
    return f"{combined.hexdigest()}-{len(digests)}"


def _parts(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield file.read(size)  # an empty file has one empty part
        while part := file.read(size):
            yield part
