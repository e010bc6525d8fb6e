"""What can go wrong in the service, as one tree. Knows nothing of HTTP; `api/problems.py` gives each class its status.

ServiceError
├── ConfigurationError
├── InvalidParameter
├── NotFound
│   ├── VideoNotFound
│   ├── VideoNotReady
│   ├── VideoFailed
│   ├── VideoExpired
│   ├── ModelNotFound
│   │   └── ModelNotFetched
│   ├── WebhookEndpointNotFound
│   └── WebhookDeliveryNotFound
├── WebhookTestFailed
├── VideoNotDeletable
├── NotAuthenticated
├── NotAllowed
├── IdempotencyKeyReused
├── Throttled
│   ├── RateLimited
│   └── QueueFull
├── SyncRequestFailed
├── StorageError
│   └── PermanentStorageError
└── ServiceUnavailable
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """`message` is one sentence for the user; it never holds a prompt or a secret."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigurationError(ServiceError):
    code = "configuration_error"


class InvalidParameter(ServiceError):
    """The client asked for something we cannot do; `param` is the field's name as it was sent."""

    def __init__(self, param: str | None, message: str, reason: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.reason = reason


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
        super().__init__(f"There is no model '{model}'; this server has {', '.join(known)}.")


class ModelNotFetched(ModelNotFound):
    def __init__(self, model: str) -> None:
        NotFound.__init__(
            self, f"The weights of model '{model}' are not on this server; `ivmix models fetch {model}` gets them."
        )


class WebhookEndpointNotFound(NotFound):
    code = "webhook_endpoint_not_found"

    def __init__(self, endpoint_id: str) -> None:
        super().__init__(f"There is no webhook endpoint with the id '{endpoint_id}'.")


class WebhookDeliveryNotFound(NotFound):
    code = "webhook_delivery_not_found"

    def __init__(self, delivery_id: str) -> None:
        super().__init__(
            f"There is no webhook delivery with the id '{delivery_id}'; they are kept for a few days only."
        )


class WebhookTestFailed(ServiceError):
    """The receiver could not be reached, or did not answer as an HTTP server does."""

    code = "webhook_test_failed"


class VideoNotDeletable(ServiceError):
    code = "video_not_deletable"


class NotAuthenticated(ServiceError):
    code = "invalid_api_key"


class NotAllowed(ServiceError):
    """The key is a good one, but not for this."""

    code = "insufficient_scope"


class IdempotencyKeyReused(ServiceError):
    code = "idempotency_key_reused"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key came with another request before; use a new key for a new video.")


class Throttled(ServiceError):
    """Right, but not now."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Throttled):
    code = "rate_limit_exceeded"


class QueueFull(Throttled):
    code = "queue_full"


class SyncRequestFailed(ServiceError):
    """Somebody waited for the film of this job and it did not come; the reason is the job's own error code."""

    def __init__(self, video_id: str, reason: str, message: str) -> None:
        super().__init__(message)
        self.video_id = video_id
        self.reason = reason


class StorageError(ServiceError):
    """Reading or writing a finished video failed for a reason outside the job; worth another try."""

    code = "storage_error"


class PermanentStorageError(StorageError):
    """The file, or the name it is to have, is not what it should be: trying again would end the same."""


class ServiceUnavailable(ServiceError):
    """Something the service leans on does not answer; worth another try."""

    code = "service_unavailable"
