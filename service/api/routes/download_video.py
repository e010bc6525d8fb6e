"""GET /v1/videos/{id}/content: a redirect to the storage, or the file itself with Range and ETag support."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic.json_schema import SkipJsonSchema

from service.api.auth import Principal, ServicesDep, get_reader, get_signer
from service.api.file_stream import FileStream
from service.api.openapi.responses import FILE, errors, success
from service.api.request_path import is_head
from service.api.visible_jobs import get_job
from service.api_keys import Scope
from service.errors import NotFound, VideoExpired, VideoFailed, VideoNotReady
from service.jobs.model import Job, JobState, Output
from service.storage import VideoStorage
from service.wire.file_urls import FileUrls, Variant
from service.wire.video import file_name

router = APIRouter(prefix="/v1", tags=["videos"])

_FILE_HEADERS = ("etag", "accept-ranges", "cache-control", "content-disposition")
_CONTENT: dict[str, Any] = dict.fromkeys(("video/mp4", "image/webp", "image/jpeg"), FILE)
_RESPONSES = (
    success(description="The file", headers=_FILE_HEADERS, content=_CONTENT)
    | success(
        description="The part of the file that Range asks for",
        headers=(*_FILE_HEADERS, "content-range"),
        status=206,
        content=_CONTENT,
    )
    | success(description="The client's copy is current (If-None-Match)", headers=_FILE_HEADERS, status=304)
    | success(description="A temporary URL of the file", headers=("location", "cache-control"), status=307)
    | errors(400, 403, 404, 416)
)


async def get_file_reader(
    request: Request,
    video_id: str,
    services: ServicesDep,
    variant: Variant = "video",
    expires: Annotated[int | SkipJsonSchema[None], Query(description="Of a signed URL")] = None,
    signature: Annotated[str | SkipJsonSchema[None], Query(max_length=100, description="Of a signed URL")] = None,
    version: Annotated[int | SkipJsonSchema[None], Query(description="Of a signed URL of a preview")] = None,
) -> Principal:
    """The caller, or any client with a signed URL of this file. Raises UrlNotValid."""
    if signature is None:
        return await get_reader(request)
    FileUrls.of(services.settings, await get_signer(request)).check(video_id, variant, expires, signature, version)
    return URL_HOLDER


# The URL was checked: it is of this file, and a client that may see the video got it.
URL_HOLDER = Principal(owner="", scopes=frozenset({Scope.READ_ALL}), requests_per_minute=None, max_waiting=None)
FileReader = Annotated[Principal, Depends(get_file_reader)]


@router.get("/videos/{video_id}/content", summary="Download a video", responses=_RESPONSES, response_class=Response)
def download_video(
    request: Request, video_id: str, reader: FileReader, services: ServicesDep, variant: Variant = "video"
) -> Response:
    job = get_job(services, reader, video_id)
    if variant == "preview":
        return _preview(request, job, services.store.preview(job.id))
    return _content(request, job, variant, services.storage)


def _preview(request: Request, job: Job, picture: bytes | None) -> Response:
    """Raises NotFound."""
    if picture is None:
        raise NotFound(
            f"The video '{job.id}' has no preview now; it has one while it is sampled, some seconds after its start."
        )
    headers = _headers(hashlib.sha256(picture).hexdigest(), file_name(job, "preview", "image/webp"), "image/webp")
    headers["cache-control"] = "private, no-cache"
    return _file_response(request, lambda start, end: (part for part in (picture[start:end],)), len(picture), headers)


def _content(request: Request, job: Job, variant: Variant, storage: VideoStorage) -> Response:
    """Raises NotFound with a code for the reason."""
    key, media_type = _file(_output(job), variant)
    filename = file_name(job, variant, media_type)
    url = storage.url(key, filename=filename, media_type=media_type)
    if url is not None and not is_head(request.scope):  # a presigned URL is for GET only
        return RedirectResponse(url, 307, {"cache-control": "no-store"})
    size = storage.size(key)
    if size is None:
        raise VideoExpired(f"The {variant} of '{job.id}' is no longer stored.")
    assert job.output is not None
    headers = _headers(f"{job.output.sha256}-{variant}", filename, media_type)
    return _file_response(request, lambda start, end: storage.open(key, start, end), size, headers)


def _headers(etag: str, filename: str, media_type: str) -> dict[str, str]:
    return {
        "etag": f'"{etag}"',
        "accept-ranges": "bytes",
        "cache-control": "private, max-age=3600",
        "content-disposition": f'inline; filename="{filename}"',
        "content-type": media_type,
    }


def _output(job: Job) -> Output:
    if job.output is not None:
        return job.output
    if job.state in (JobState.FAILED, JobState.CANCELLED):
        raise VideoFailed(f"The video '{job.id}' failed; see its error.")
    raise VideoNotReady(f"The video '{job.id}' is not ready: {job.state}, {job.progress} %. Try again later.")


def _file(output: Output, variant: Variant) -> tuple[str, str]:
    """Storage key and media type, of a file in the storage."""
    files = {
        "video": (output.key, output.media_type),
        "thumbnail": (output.thumbnail_key, "image/webp"),
        "spritesheet": (output.spritesheet_key, "image/jpeg"),
    }
    key, media_type = files[variant]
    if key is None:
        raise NotFound(f"This video has no {variant}.")
    return key, media_type


def _file_response(
    request: Request, read: Callable[[int, int], Generator[bytes]], size: int, headers: dict[str, str]
) -> Response:
    """`read` returns the bytes from a start to an exclusive end."""
    if headers["etag"] in request.headers.get("if-none-match", ""):
        return Response(None, 304, headers)
    part = _parse_range(request, size, headers["etag"])
    start, end = part or (0, size)
    if part:
        headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
    headers["content-length"] = str(end - start)
    status = 206 if part else 200
    if is_head(request.scope):
        return Response(None, status, headers)
    return FileStream(read(start, end), status, headers)


def _parse_range(request: Request, size: int, etag: str) -> tuple[int, int] | None:
    """Start and exclusive end of a single-range request, None for the whole file (RFC 9110, 14.2).

    Raises HTTPException 416 if the range is outside the file.
    """
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", request.headers.get("range", "").replace(" ", ""))
    if not match or match.groups() == ("", "") or request.headers.get("if-range", etag) != etag:
        return None
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= end:
        raise HTTPException(416, f"The file has {size} bytes.", {"content-range": f"bytes */{size}"})
    return start, end
