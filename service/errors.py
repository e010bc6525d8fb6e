"""What can go wrong in the service, as one tree. Knows nothing of HTTP; `api/problems.py` gives each class its status.

ServiceError
├── ConfigurationError
├── InvalidParameter
├── NotFound
│   ├── VideoNotFound
│   ├── VideoNotReady
│   ├── VideoFailed
│   ├── VideoExpired
│   └── ModelNotFound
├── VideoNotDeletable
├── StorageError
│   └── UnstorableFile
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


class VideoNotDeletable(ServiceError):
    code = "video_not_deletable"


class StorageError(ServiceError):
    """Reading or writing a finished video failed for a reason outside the job; worth another try."""

    code = "storage_error"


class UnstorableFile(StorageError):
    """The file, or the name it is to have, is not what it should be: trying again would end the same."""


class ServiceUnavailable(ServiceError):
    """Something the service leans on does not answer; worth another try."""

    code = "service_unavailable"
