"""Explains why an S3 server rejected a request: which setting is wrong and how to correct it."""

from __future__ import annotations

import re
from typing import Any, cast

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError, SSLError
from botocore.exceptions import PartialCredentialsError as PartialCredentials

from service.errors import ConfigurationError, StorageError
from service.storage.s3_endpoint import without_bucket

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
# Codes and statuses with which servers answer to a bucket in a wrong place.
_MISPLACED_BUCKET = {
    *("NoSuchBucket", "NoSuchKey", "InvalidBucketName", "InvalidURI", "InvalidRequest", "MethodNotAllowed"),
    *("PermanentRedirect", "BucketAlreadyExists", "400", "404", "405"),
}

_WRONG_NAME = re.compile("hostname mismatch|doesn't match", re.IGNORECASE)  # of the certificate: by ssl, by urllib3


def explain_s3_error(
    e: BotoCoreError | ClientError, *, bucket: str, endpoint_url: str | None = None, uses_kms: bool = False
) -> ConfigurationError | StorageError:
    """ConfigurationError if a setting must be corrected, StorageError if the failure may be temporary."""
    reason, name = _reason(e)
    if uses_kms and reason == _CODES["AccessDenied"]:
        reason = f"{_CODES['AccessDenied']}, with IVMIX_S3_ENCRYPTION also kms:GenerateDataKey and kms:Decrypt"
    shorter = without_bucket(endpoint_url, bucket)
    hint = (
        f"IVMIX_S3_ENDPOINT_URL contains the bucket, which only IVMIX_S3_BUCKET={bucket} should name; set "
        f"IVMIX_S3_ENDPOINT_URL={shorter}"
    )
    if reason is None:
        return StorageError(f"bucket {bucket}: {e}{f'; if this remains: {hint}' if shorter else ''}")
    if shorter and (name in _MISPLACED_BUCKET or _WRONG_NAME.search(str(e))):
        return ConfigurationError(f"S3 rejected the request ({name}): {hint}")
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
