"""What an S3 server calls a file that arrived whole: the MD5 of its bytes, or of its parts' MD5s.

Not every server does so (one that encrypts with its own keys does not), so another name proves nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path


def expected_etag(path: Path, *, part_bytes: int) -> str:
    """Without the quotes. A file from `part_bytes` on is sent in parts of that size."""
    digests = [hashlib.md5(piece, usedforsecurity=False) for piece in _pieces(path, part_bytes)]
    if path.stat().st_size < part_bytes:
        return digests[0].hexdigest()
    whole = hashlib.md5(b"".join(digest.digest() for digest in digests), usedforsecurity=False)
    return f"{whole.hexdigest()}-{len(digests)}"


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield file.read(size)  # an empty file has one empty piece
        while piece := file.read(size):
            yield piece
