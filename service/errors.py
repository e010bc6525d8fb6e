"""All errors of the service. `api/errors.py` maps each class to an HTTP status."""

from __future__ import annotations

import errno
from typing import ClassVar

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, or the process's own limit is used up


class ServiceError(Exception):
    """`message` is one sentence for the user. It never contains a prompt or a secret."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigurationError(ServiceError):
    code = "configuration_error"


class InvalidParameter(ServiceError):
    """The request is invalid. `param` is the field's name as the client sent it."""

    def __init__(self, param: str | None, message: str, reason: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.reason = reason


class BodyTooLarge(InvalidParameter):
    """The file in a field is larger than the limit."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(param, message, "body_too_large")


class NotFound(ServiceError):
    code = "not_found"


class VideoNotFound(NotFound):
    code = "video_not_found"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"There is no video with the id '{job_id}'.")


class VideoNotReady(NotFound):
    code = "video_not_ready"


class VideoFailed(NotFound):
    code = "video_failed"


class VideoExpired(NotFound):
    code = "video_expired"


class ModelNotFound(NotFound):
    code = "model_not_found"

    def __init__(self, model: str, known: tuple[str, ...]) -> None:
        super().__init__(f"There is no model '{model}'; this server offers {', '.join(known)}.")


class ModelNotFetched(ModelNotFound):
    def __init__(self, model: str) -> None:
        message = (
            f"The weights of model '{model}' are missing on this server; `ivmix models fetch {model}` downloads them."
        )
        NotFound.__init__(self, message)


class WebhookEndpointNotFound(NotFound):
    code = "webhook_endpoint_not_found"

    def __init__(self, endpoint_id: str) -> None:
        super().__init__(f"There is no webhook endpoint with the id '{endpoint_id}'.")


class WebhookDeliveryNotFound(NotFound):
    code = "webhook_delivery_not_found"

    def __init__(self, delivery_id: str) -> None:
        super().__init__(
            f"There is no webhook delivery with the id '{delivery_id}'; deliveries are kept for a few days only."
        )


class WebhookTestFailed(ServiceError):
    """The receiver of a test event is unreachable or did not send a valid HTTP response."""

    code = "webhook_test_failed"


class NotAuthenticated(ServiceError):
    code = "invalid_api_key"


class NotAllowed(ServiceError):
    """The API key is valid but lacks a scope."""

    code = "insufficient_scope"


class UrlNotValid(NotAllowed):
    """A signed URL was changed, is of another file, or has expired."""

    code = "url_not_valid"


class IdempotencyKeyReused(ServiceError):
    code = "idempotency_key_reused"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was already used with a different request; use a new key per video.")


class Throttled(ServiceError):
    """The request is valid, but a limit is reached; it may succeed after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Throttled):
    code = "rate_limit_exceeded"


class QueueFull(Throttled):
    code = "queue_full"


class QuotaExceeded(Throttled):
    """The API key has used its GPU time of the day, or what waits and runs will."""

    code = "quota_exceeded"

    def __init__(self, quota_s: int, used_ms: int, expected_ms: int, reset_s: int) -> None:
        super().__init__(
            f"GPU quota exceeded: {quota_s} seconds per day for this API key. {used_ms / 1000:.0f} are used, and "
            f"videos that wait or run are expected to take {expected_ms / 1000:.0f}. The day ends at 00:00 UTC.",
            max(1, reset_s),
        )


class SyncRequestFailed(ServiceError):
    """A synchronous request ended without a video. `reason` is the error code of the job."""

    def __init__(self, video_id: str, reason: str, message: str) -> None:
        super().__init__(message)
        self.video_id = video_id
        self.reason = reason


class StorageError(ServiceError):
    """A storage operation failed for a reason that may be temporary; retry it."""

    code = "storage_error"


class PermanentStorageError(StorageError):
    """The file or the key is invalid; retrying cannot succeed."""


class ServiceUnavailable(ServiceError):
    """A dependency such as Redis is unreachable; retry later."""

    code = "service_unavailable"


class NotReplicated(ServiceUnavailable):
    """The primary of Redis has a change that too few replicas confirmed in time, so a failover could lose it."""

    def __init__(self, reached: int, wanted: int, timeout_s: float) -> None:
        super().__init__(
            f"{reached} of IVMIX_REDIS_WAIT_REPLICAS={wanted} replicas confirmed the change within {timeout_s:g} s; "
            "check the replicas, or lower the setting"
        )


class NoSpace(ServiceUnavailable):
    """The server's disk is almost full, so it accepts no new jobs."""

    code = "no_space"

    def __init__(self) -> None:
        super().__init__("The server has too little free disk space for new videos; try again later.")


class ModelUnavailable(ServiceUnavailable):
    """No worker can load the model. `reason` is one sentence without paths of the server."""

    code = "model_unavailable"

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"Model '{model}' cannot be loaded at present: {reason}")
