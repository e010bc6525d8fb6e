"""The bytes of a finished video: a redirect to where the storage serves them, or streamed by us with ranges."""

from __future__ import annotations

import re

from fastapi import HTTPException, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from service.errors import NotFound, VideoExpired, VideoFailed, VideoNotReady
from service.jobs.model import Job, JobState, Output
from service.storage import VideoStorage
from service.wire.video import Variant, file_name


def content(request: Request, job: Job, variant: Variant, storage: VideoStorage) -> Response:
    """Raises NotFound, with a code that says what is missing: the SDKs would repeat a 409."""
    output = _finished(job)
    key, media_type = _part(output, variant)
    filename = file_name(job, variant, media_type)
    url = storage.url(key, filename=filename, media_type=media_type)
    if url is not None and request.method == "GET":
        return RedirectResponse(url, 307, {"cache-control": "no-store"})
    size = storage.size(key)
    if size is None:
        raise VideoExpired(f"The {variant} of '{job.id}' is not stored any more.")
    headers = {
        "etag": f'"{output.sha256}-{variant}"',
        "accept-ranges": "bytes",
        "cache-control": "private, max-age=3600",
        "content-disposition": f'inline; filename="{filename}"',
        "content-type": media_type,
    }
    return _send(request, storage, key, size, headers)


def _finished(job: Job) -> Output:
    if job.output is not None:
        return job.output
    if job.state in (JobState.FAILED, JobState.CANCELLED):
        raise VideoFailed(f"The video '{job.id}' failed; its error says why.")
    raise VideoNotReady(f"The video '{job.id}' is not ready: {job.state}, {job.progress} %. Ask again later.")


def _part(output: Output, variant: Variant) -> tuple[str, str]:
    parts = {
        "video": (output.key, output.media_type),
        "thumbnail": (output.thumbnail_key, "image/webp"),
        "spritesheet": (output.spritesheet_key, "image/jpeg"),
    }
    key, media_type = parts[variant]
    if key is None:
        raise NotFound(f"This video has no {variant}.")
    return key, media_type


def _send(request: Request, storage: VideoStorage, key: str, size: int, headers: dict[str, str]) -> Response:
    if headers["etag"] in request.headers.get("if-none-match", ""):
        return Response(None, 304, headers)
    part = _range(request, size, headers["etag"])
    start, end = part or (0, size)
    if part:
        headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
    headers["content-length"] = str(end - start)
    status = 206 if part else 200
    if request.method == "HEAD":
        return Response(None, status, headers)
    return StreamingResponse(storage.open(key, start, end), status, headers)


def _range(request: Request, size: int, etag: str) -> tuple[int, int] | None:
    """start and end (not included) of the one range that is asked for; None for the whole file (RFC 9110 14.2)."""
    asked = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", request.headers.get("range", "").replace(" ", ""))
    if not asked or asked.groups() == ("", "") or request.headers.get("if-range", etag) != etag:
        return None
    first, last = asked.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= end:
        raise HTTPException(416, f"The file has {size} bytes.", {"content-range": f"bytes */{size}"})
    return start, end
