"""Maps every exception to an HTTP status and the body {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from redis import exceptions as redis_errors
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.errors import (
    BodyTooLarge,
    IdempotencyKeyReused,
    InvalidParameter,
    ModelUnavailable,
    NoSpace,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    QuotaExceeded,
    ServiceError,
    ServiceUnavailable,
    StorageError,
    SyncRequestFailed,
    Throttled,
    WebhookTestFailed,
)
from service.log_config import ONCE_A_MINUTE
from service.validation_messages import invalid_value

log = logging.getLogger("ivmix.api")

RETRY_AFTER_S = 2
NO_SPACE_RETRY_AFTER_S = 30

INTERNAL_ERROR = "Internal error; quote this x-request-id."
UNAVAILABLE = "Temporarily unavailable; try again."
JOB_STORE_UNAVAILABLE = "The job store is unreachable; try again."

# The nearest base class listed here decides; any other ServiceError is 500. Permanent errors are never 409: the OpenAI
# SDKs retry that status.
STATUS: dict[type[ServiceError], int] = {
    BodyTooLarge: 413,
    InvalidParameter: 400,
    WebhookTestFailed: 400,
    NotAuthenticated: 401,
    NotAllowed: 403,
    NotFound: 404,
    IdempotencyKeyReused: 422,
    Throttled: 429,
    StorageError: 503,
    ServiceUnavailable: 503,
}

# POST /v1/videos/sync without a video, by the job's error code; every other code is 500.
SYNC_STATUS = {
    "invalid_input": 400,
    "not_finite": 400,
    "cancelled": 400,
    "model_unavailable": 503,
    "sync_timeout": 504,
    "start_timeout": 504,
}

TYPE = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

# Of errors that FastAPI and Starlette raise.
CODE = {
    400: "invalid_body",
    404: "unsupported_endpoint",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
}

# Redis is unreachable, full or read-only. Any other Redis error is a bug of this service.
_REDIS_UNAVAILABLE = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.OutOfMemoryError,
    redis_errors.ReadOnlyError,
    redis_errors.MasterDownError,
    redis_errors.NoPermissionError,
)
_REDIS_CANNOT_WRITE = ("MISCONF", "NOREPLICAS")  # disk full, too few replicas: redis-py has no class for them


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """Body of every response with status 400 and above."""

    error: ErrorDetail


def add_error_handlers(app: FastAPI) -> None:
    for kind, handler in (
        (ServiceError, _handle_service_error),
        (RequestValidationError, _handle_validation_error),
        (HTTPException, _handle_http_exception),
        (redis_errors.RedisError, _handle_redis_error),
        (ClientDisconnect, _handle_disconnect),
        (Exception, _handle_unexpected),
    ):
        app.add_exception_handler(kind, handler)


def error_body(status: int, message: str, code: str, param: str | None = None) -> ErrorBody:
    kind = TYPE.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return ErrorBody(error=ErrorDetail(message=message, type=kind, param=param, code=code))


def error_response(
    status: int, message: str, *, code: str, param: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    body = error_body(status, _visible(message), code, param and _encodable(param))
    retry = {"retry-after": str(RETRY_AFTER_S)} if status == 503 else {}
    return JSONResponse(body.model_dump(), status, headers=retry | (headers or {}))


def _visible(text: str) -> str:
    """Escapes what does not show, such as the zero-width space that makes a word unknown; lone surrogates too."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _encodable(text: str) -> str:
    """Replaces lone surrogates, which JSON input can contain but UTF-8 cannot."""
    return text.encode(errors="replace").decode()


def _handle_service_error(request: Request, e: Exception) -> JSONResponse:
    assert isinstance(e, ServiceError)
    if isinstance(e, SyncRequestFailed):
        headers = {"x-video-id": e.video_id, "x-should-retry": "false"}  # a retry would create another video
        return error_response(SYNC_STATUS.get(e.reason, 500), e.message, code=e.reason, headers=headers)
    status = next((STATUS[kind] for kind in type(e).__mro__ if kind in STATUS), 500)
    if status >= 500 and not isinstance(e, NoSpace | ModelUnavailable):
        _log(request, e)  # the details name hosts and buckets, so they go to the log only
        return error_response(status, UNAVAILABLE, code=e.code)
    if isinstance(e, InvalidParameter):
        return error_response(status, e.message, code=e.reason, param=e.param)
    return error_response(status, e.message, code=e.code, headers=_headers(e))


def _headers(e: ServiceError) -> dict[str, str]:
    match e:
        case NotAuthenticated():
            return {"www-authenticate": "Bearer"}
        case QuotaExceeded():  # SDKs would retry within seconds
            return {"retry-after": str(e.retry_after_s), "x-should-retry": "false"}
        case NoSpace():
            return {"retry-after": str(NO_SPACE_RETRY_AFTER_S)}
        case Throttled():
            return {"retry-after": str(e.retry_after_s)}
        case _:
            return {}


def _handle_validation_error(_request: Request, e: Exception) -> JSONResponse:
    """Path, query and header parameters; request bodies are validated in `parsing`."""
    assert isinstance(e, RequestValidationError)
    first: dict[str, Any] = e.errors()[0]
    param = str(first["loc"][1])  # ("query", name, ...)
    return error_response(400, invalid_value(param, first), code="invalid_value", param=param)


def with_head(methods: list[str]) -> list[str]:
    """`HeadRequests` answers HEAD wherever GET is supported."""
    return [*methods, "HEAD"] if "GET" in methods and "HEAD" not in methods else methods


def _handle_http_exception(request: Request, e: Exception) -> JSONResponse:
    assert isinstance(e, HTTPException)
    message = {
        404: f"Unknown endpoint: {request.method} {request.url.path}.",
        405: f"{request.url.path} does not support {request.method}.",
    }.get(e.status_code, e.detail)
    code = CODE.get(e.status_code, "invalid_request")
    headers = dict(e.headers or {})
    if e.status_code == 405:  # Starlette names only the methods of the first route with this path
        allowed = request.app.state.contract.methods(request.scope) or with_head(headers["Allow"].split(", "))
        headers = {"allow": ", ".join(allowed)}
    return error_response(e.status_code, message, code=code, headers=headers)


def _handle_redis_error(request: Request, e: Exception) -> JSONResponse:
    if not isinstance(e, _REDIS_UNAVAILABLE) and not any(word in str(e) for word in _REDIS_CANNOT_WRITE):
        return _handle_unexpected(request, e)
    log.error("the job store is unavailable (%s)", type(e).__name__, extra=ONCE_A_MINUTE)
    return error_response(503, JOB_STORE_UNAVAILABLE, code=ServiceUnavailable.code)


def _handle_disconnect(_request: Request, _e: Exception) -> JSONResponse:
    """The client left, or took too long, before its request was complete. Only metrics see this response."""
    return error_response(408, "The request was not complete.", code="request_timeout")


def _handle_unexpected(request: Request, e: Exception) -> JSONResponse:
    _log(request, e)
    # Starlette sends this response outside the middleware that adds these headers.
    headers = {"x-request-id": _request_id(request), "cache-control": "no-store", "x-content-type-options": "nosniff"}
    return error_response(500, INTERNAL_ERROR, code=ServiceError.code, headers=headers)


def _log(request: Request, e: Exception) -> None:
    log.error("%s: %s %s failed", _request_id(request), request.method, request.url.path, exc_info=e)


def _request_id(request: Request) -> str:
    return request.scope["state"]["request_id"]
