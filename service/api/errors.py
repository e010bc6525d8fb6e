"""Every error as {"error": {"message", "type", "param", "code"}}. The only place where errors meet HTTP."""

from __future__ import annotations

import logging
import re
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from redis import exceptions as redis_errors
from starlette.exceptions import HTTPException

from service.errors import (
    IdempotencyKeyReused,
    InvalidParameter,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    ServiceError,
    ServiceUnavailable,
    StorageError,
    SyncRequestFailed,
    Throttled,
    VideoNotDeletable,
    WebhookTestFailed,
)

log = logging.getLogger("ivmix.api")

RETRY_AFTER_S = 2
OUR_MISTAKE = "The service made a mistake; it is in the log under this x-request-id."

# The most special class of an error that is in here decides; the rest of our own errors are our fault: 500.
# Never 409 for what lasts: the SDKs repeat it (reference/api.md 1.8).
STATUS: dict[type[ServiceError], int] = {
    InvalidParameter: 400,
    VideoNotDeletable: 400,
    WebhookTestFailed: 400,
    NotAuthenticated: 401,
    NotAllowed: 403,
    NotFound: 404,
    IdempotencyKeyReused: 422,
    Throttled: 429,
    StorageError: 503,
    ServiceUnavailable: 503,
}

# Of a request that waited for a film which does not come, by the job's error code; else it is our fault: 500.
NO_VIDEO = {"invalid_input": 400, "not_finite": 400, "cancelled": 400, "sync_timeout": 504, "start_timeout": 504}

TYPE = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

CODE = {
    400: "invalid_body",
    404: "unsupported_endpoint",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
}

# Redis is away, or there but full or read-only. Its other complaints mean that we asked for nonsense.
_REDIS_AWAY = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.OutOfMemoryError,
    redis_errors.ReadOnlyError,
    redis_errors.MasterDownError,
)
_CANNOT_WRITE = ("MISCONF", "NOREPLICAS")  # a full disk, too few replicas: no class of their own


class Problem(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """Sent with every status of 400 and above."""

    error: Problem


def _example(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    return {"message": message, "type": kind, "param": param, "code": code}


EXAMPLES: dict[int, dict[str, Any]] = {
    400: _example(
        "Invalid value: '720x1280'. Supported values are: 384x384.", "invalid_request_error", "invalid_value", "size"
    ),
    401: _example("This API key is not known here, or was revoked.", TYPE[401], "invalid_api_key"),
    403: _example("This API key lacks the scope 'videos.write'.", TYPE[403], "insufficient_scope"),
    404: _example("There is no video with the id 'video_0'.", "invalid_request_error", "video_not_found"),
    413: _example("The body is larger than 65536 bytes.", "invalid_request_error", CODE[413]),
    415: _example("Send the body as application/json or ...", "invalid_request_error", CODE[415]),
    416: _example("The file has 41000 bytes.", "invalid_request_error", CODE[416]),
    422: _example(IdempotencyKeyReused().message, "invalid_request_error", IdempotencyKeyReused.code),
    429: _example(
        "1000 videos wait already, the most that the server takes; try again later.", TYPE[429], "queue_full"
    ),
    500: _example(
        "The service made a mistake; it is in the log under this x-request-id.", "server_error", "internal_error"
    ),
    503: _example("The job store does not answer; try again.", "server_error", ServiceUnavailable.code),
    504: _example(
        "The video 'video_0' is still running; ask for it at /v1/videos/video_0.", "server_error", "sync_timeout"
    ),
}


def install(app: FastAPI) -> None:
    for kind, handler in (
        (ServiceError, _service_error),
        (RequestValidationError, _invalid_request),
        (HTTPException, _http_error),
        (redis_errors.RedisError, _redis_error),
        (Exception, _unexpected),
    ):
        app.add_exception_handler(kind, handler)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's documentation."""
    return {status: {"model": ErrorBody, "description": HTTPStatus(status).phrase} for status in statuses}


def problem(
    status: int, message: str, *, code: str, param: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    kind = TYPE.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = Problem(message=_sendable(message), type=kind, param=param and _sendable(param), code=code)
    body = ErrorBody(error=error)
    retry = {"retry-after": str(RETRY_AFTER_S)} if status == 503 else {}
    return JSONResponse(body.model_dump(), status, headers=retry | (headers or {}))


def _sendable(text: str) -> str:
    """JSON can bring in half characters (lone surrogates), which cannot be sent back."""
    return text.encode(errors="replace").decode()


def _service_error(request: Request, e: Exception) -> JSONResponse:
    assert isinstance(e, ServiceError)
    if isinstance(e, SyncRequestFailed):
        headers = {"x-video-id": e.video_id, "x-should-retry": "false"}  # the SDKs would make another one
        return problem(NO_VIDEO.get(e.reason, 500), e.message, code=e.reason, headers=headers)
    status = next((STATUS[kind] for kind in type(e).__mro__ if kind in STATUS), 500)
    if status >= 500:
        _log(request, e)  # what exactly the storage said is for the log only: it names hosts and buckets
        return problem(status, "The service cannot do this just now; try again.", code=e.code)
    if isinstance(e, InvalidParameter):
        return problem(status, e.message, code=e.reason, param=e.param)
    return problem(status, e.message, code=e.code, headers=_headers(e))


def _headers(e: ServiceError) -> dict[str, str]:
    match e:
        case NotAuthenticated():
            return {"www-authenticate": "Bearer"}
        case Throttled():
            return {"retry-after": str(e.retry_after_s)}
        case _:
            return {}


def _invalid_request(_request: Request, e: Exception) -> JSONResponse:
    """Parameters in the path or query; bodies are read by `bodies.py`."""
    assert isinstance(e, RequestValidationError)
    first: dict[str, Any] = e.errors()[0]
    param = str(first["loc"][-1])
    return problem(400, f"Invalid value for '{param}': {first['msg']}.", code="invalid_value", param=param)


def _http_error(request: Request, e: Exception) -> JSONResponse:
    assert isinstance(e, HTTPException)
    message = {
        404: f"There is nothing at {request.method} {request.url.path}.",
        405: f"{request.method} is not possible at {request.url.path}.",
    }.get(e.status_code, e.detail)
    code = CODE.get(e.status_code, "invalid_request")
    headers = dict(e.headers or {})
    if e.status_code == 405:
        headers |= _allowed(request)
    return problem(e.status_code, message, code=code, headers=headers)


def _allowed(request: Request) -> dict[str, str]:
    """The methods of all routes of this path; the router names those of the first one only."""
    for template, operations in sorted(request.app.openapi()["paths"].items(), key=lambda path: path[0].count("{")):
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), request.url.path):
            return {"allow": ", ".join(method.upper() for method in operations)}
    return {}


def _redis_error(request: Request, e: Exception) -> JSONResponse:
    if not isinstance(e, _REDIS_AWAY) and not any(word in str(e) for word in _CANNOT_WRITE):
        return _unexpected(request, e)
    log.error("%s: the job store does not answer (%s)", _request_id(request), type(e).__name__)
    return problem(503, "The job store does not answer; try again.", code=ServiceUnavailable.code)


def _unexpected(request: Request, e: Exception) -> JSONResponse:
    _log(request, e)
    # Sent from outside our own middleware, which therefore cannot add the id.
    headers = {"x-request-id": _request_id(request)}
    return problem(500, OUR_MISTAKE, code=ServiceError.code, headers=headers)


def _log(request: Request, e: Exception) -> None:
    log.error("%s: %s %s failed", _request_id(request), request.method, request.url.path, exc_info=e)


def _request_id(request: Request) -> str:
    return request.scope["state"]["request_id"]
