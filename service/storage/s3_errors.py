"""Explains why an S3 server rejected a request: which setting is wrong and how to correct it."""

from __future__ import annotations

from typing import Any, cast

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError, SSLError
from botocore.exceptions import PartialCredentialsError as PartialCredentials

from service.errors import ConfigurationError, StorageError

_KEYS = "IVMIX_S3_ACCESS_KEY_ID and IVMIX_S3_SECRET_ACCESS_KEY"

# S3 error code -> what to do.
_CODES = {
    "SignatureDoesNotMatch": f"{_KEYS} do not belong together or to this server; check the secret first",
    "InvalidAccessKeyId": "the server does not know IVMIX_S3_ACCESS_KEY_ID",
    "InvalidToken": f"the server does not accept {_KEYS}",
    "ExpiredToken": "the credentials have expired; set new ones",
    "AccessDenied": f"{_KEYS} may not list, write and delete in IVMIX_S3_BUCKET; grant these permissions",
    "AllAccessDisabled": "access to IVMIX_S3_BUCKET is disabled",
    "NoSuchBucket": "IVMIX_S3_BUCKET does not exist on this server; create it",
    "InvalidBucketName": "IVMIX_S3_BUCKET is not a valid bucket name",
    "PermanentRedirect": "IVMIX_S3_REGION or IVMIX_S3_ENDPOINT_URL is not that of the bucket",
    "AuthorizationHeaderMalformed": "IVMIX_S3_REGION is not the region of the bucket",
    "IllegalLocationConstraintException": "IVMIX_S3_REGION is not the region of the bucket",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "MissingContentLength": "the server does not accept checksums in trailers; set IVMIX_S3_CHECKSUM=when_required",
    "NotImplemented": "the server does not support the request; try IVMIX_S3_CHECKSUM=when_required",
}
# HTTP status -> what to do, for servers that send no known code.
_STATUSES = {
    401: f"the server does not accept {_KEYS}",
    403: _CODES["AccessDenied"],
    404: _CODES["NoSuchBucket"],
    405: "IVMIX_S3_ENDPOINT_URL is not the URL of an S3 server",
}


def explain_s3_error(e: BotoCoreError | ClientError, *, bucket: str) -> ConfigurationError | StorageError:
    """ConfigurationError if a setting must be corrected, StorageError if the failure may be temporary."""
    reason, name = _reason(e)
    if reason is None:
        return StorageError(f"bucket {bucket}: {e}")
    return ConfigurationError(f"S3 rejected the request ({name}, bucket {bucket!r}): {reason}")


def _reason(e: BotoCoreError | ClientError) -> tuple[str | None, str]:
    if isinstance(e, ClientError):
        response = cast(Any, e).response  # boto3 has no types
        code, status = response["Error"].get("Code", ""), response["ResponseMetadata"]["HTTPStatusCode"]
        return _CODES.get(code) or _STATUSES.get(status), code or str(status)
    name = type(e).__name__
    if isinstance(e, SSLError):
        return f"IVMIX_S3_CA_FILE must contain the server's CA, and IVMIX_S3_ENDPOINT_URL its host name: {e}", name
    if isinstance(e, NoCredentialsError | PartialCredentials):
        return f"there are no credentials; set {_KEYS}", name
    if isinstance(e, ParamValidationError):
        return _CODES["InvalidBucketName"], name
    return None, name
