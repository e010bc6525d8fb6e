"""Builders for the `responses=` and bodies of routes, and the shared components that these refer to by name."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

from service.api.errors import CODE, INTERNAL_ERROR, JOB_STORE_UNAVAILABLE, ErrorBody, error_body
from service.errors import (
    IdempotencyKeyReused,
    NotAllowed,
    NotAuthenticated,
    QueueFull,
    ServiceError,
    ServiceUnavailable,
    VideoNotFound,
)

Responses = dict[int | str, dict[str, Any]]

FILE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


def success(
    *examples: str,
    description: str = "Success",
    headers: tuple[str, ...] = (),
    status: int = 200,
    content: dict[str, Any] | None = None,
) -> Responses:
    """A response without an error.

    Args:
        examples: of the JSON body, by their name in `examples`.
        headers: by their name in `HEADERS`; x-request-id is added.
        content: what the response has besides or instead of JSON, by media type.
    """
    response = {"description": description, "headers": header_refs("x-request-id", *headers)}
    json = {"application/json": {"examples": example_refs(*examples)}} if examples else {}
    contents = json | (content or {})
    return {status: response | ({"content": contents} if contents else {})}


def errors(*statuses: int, prefix: str = "") -> Responses:
    """Error responses, which all have the same body; `prefix` is part of the name in `ERROR_RESPONSES`."""
    return {status: ref("responses", f"{prefix}Error{status}") for status in statuses}


def json_body(model: type[BaseModel], *examples: str, required: bool = True) -> dict[str, Any]:
    """The `openapi_extra=` of a route that reads a JSON body by itself."""
    content = {"application/json": {"schema": model.model_json_schema(), "examples": example_refs(*examples)}}
    return {"requestBody": {"required": required, "content": content}}


def example_refs(*names: str) -> dict[str, Any]:
    return {name: ref("examples", name) for name in names}


def header_refs(*names: str) -> dict[str, Any]:
    return {name: ref("headers", name) for name in names}


def ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def _header(description: str, **schema: Any) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"} | schema}


HEADERS: dict[str, Any] = {
    "x-request-id": _header("Echoed if sent, otherwise generated; appears in logs"),
    "retry-after": _header("Seconds to wait before the next attempt", type="integer", minimum=1),
    "www-authenticate": _header("The authentication scheme", const="Bearer"),
    "openai-poll-after-ms": _header("Milliseconds to wait between two polls", type="integer"),
    "idempotent-replayed": _header("Sent if this is the video of an earlier request with the same key", const="true"),
    "x-has-more": _header("Of CSV: whether more rows follow", enum=["true", "false"]),
    "x-last-id": _header("Of CSV: pass it as `after` to get the next rows"),
    "x-video-id": _header("The id of the created video"),
    "x-should-retry": _header(
        "Sent if a retry would create another video, or the quota is used up for today", const="false"
    ),
    "etag": _header("Changes with the content; for If-None-Match and If-Range"),
    "accept-ranges": _header("Range requests are supported", const="bytes"),
    "cache-control": _header("How long the response may be cached"),
    "content-disposition": _header("A file name"),
    "content-range": _header("Which bytes these are, and the size of the file"),
    "set-cookie": _header("The session"),
    "location": _header("Temporary URL of the file", format="uri"),
}

_HEADERS_BY_STATUS = {
    401: ["www-authenticate"],
    416: ["content-range"],
    429: ["retry-after", "x-should-retry"],
    503: ["retry-after"],
}


def _error_response(status: int, message: str, code: str, param: str | None = None, *headers: str) -> dict[str, Any]:
    """As `errors.error_response` sends it."""
    example = error_body(status, message, code, param).model_dump()
    return {
        "description": HTTPStatus(status).phrase,
        "headers": header_refs("x-request-id", *_HEADERS_BY_STATUS.get(status, ()), *headers),
        "content": {"application/json": {"schema": ref("schemas", ErrorBody.__name__), "example": example}},
    }


def _from_exception(status: int, e: ServiceError) -> dict[str, Any]:
    return _error_response(status, e.message, e.code)


_INVALID = ("Invalid value: '720x1280'. Supported values are: 384x384.", "invalid_value", "size")
_SYNC = (None, "x-video-id", "x-should-retry")  # no parameter; the headers of a video that was created
ERROR_RESPONSES: dict[str, Any] = {
    "Error400": _error_response(400, *_INVALID),
    "Error401": _from_exception(401, NotAuthenticated("This API key is unknown or revoked.")),
    "Error403": _from_exception(403, NotAllowed("This API key lacks the scope 'videos.write'.")),
    "Error404": _from_exception(404, VideoNotFound("video_0")),
    "Error413": _error_response(413, "The body is larger than 65536 bytes.", CODE[413]),
    "Error415": _error_response(415, "Send the body as application/json or ...", CODE[415]),
    "Error416": _error_response(416, "The file has 41000 bytes.", CODE[416]),
    "Error422": _from_exception(422, IdempotencyKeyReused()),
    "Error429": _from_exception(429, QueueFull("Queue is full (1000 waiting). Try again later.", 30)),
    "Error500": _error_response(500, INTERNAL_ERROR, ServiceError.code),
    "Error503": _error_response(503, JOB_STORE_UNAVAILABLE, ServiceUnavailable.code),
    "SyncError400": _error_response(400, *_INVALID, *_SYNC[1:]),
    "SyncError500": _error_response(500, INTERNAL_ERROR, ServiceError.code, *_SYNC),
    "SyncError503": _error_response(503, JOB_STORE_UNAVAILABLE, ServiceUnavailable.code, *_SYNC),
    "SyncError504": _error_response(
        504, "The video 'video_0' is still running; ask for it at /v1/videos/video_0.", "sync_timeout", *_SYNC
    ),
}
