"""What an S3 server's refusal means for the settings: which one is wrong, and the way out."""

from __future__ import annotations

from typing import Any, cast

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError, SSLError
from botocore.exceptions import PartialCredentialsError as PartialCredentials

from service.errors import ConfigurationError, StorageError

_KEYS = "IVMIX_S3_ACCESS_KEY_ID and IVMIX_S3_SECRET_ACCESS_KEY"
_WRONG_PAIR = f"{_KEYS} do not belong together, or not to this server: check the secret first"

# The code of the server's answer -> what to do.
_CODES = {
    "SignatureDoesNotMatch": _WRONG_PAIR,
    "InvalidAccessKeyId": "IVMIX_S3_ACCESS_KEY_ID is not known there",
    "InvalidToken": f"{_KEYS} are not accepted there",
    "ExpiredToken": "the credentials have expired; set new ones",
    "AccessDenied": f"{_KEYS} are not allowed to list, write and delete in IVMIX_S3_BUCKET",
    "AllAccessDisabled": "IVMIX_S3_BUCKET is closed",
    "NoSuchBucket": "IVMIX_S3_BUCKET does not exist there; create it",
    "InvalidBucketName": "IVMIX_S3_BUCKET is no name for a bucket",
    "PermanentRedirect": "IVMIX_S3_REGION or IVMIX_S3_ENDPOINT_URL is not the bucket's",
    "AuthorizationHeaderMalformed": "IVMIX_S3_REGION is not the bucket's",
    "IllegalLocationConstraintException": "IVMIX_S3_REGION is not the bucket's",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "MissingContentLength": "the server does not take checksums as trailers: use IVMIX_S3_CHECKSUM=when_required",
    "NotImplemented": "the server cannot do what is asked: try IVMIX_S3_CHECKSUM=when_required",
}
# Where the code says nothing we know.
_STATUSES = {
    401: f"{_KEYS} are not accepted",
    403: f"{_KEYS} are not allowed to list, write and delete in IVMIX_S3_BUCKET",
    404: "IVMIX_S3_BUCKET does not exist there; create it",
    405: "IVMIX_S3_ENDPOINT_URL does not lead to an S3 server",
}


def explain(e: BotoCoreError | ClientError, *, bucket: str) -> ConfigurationError | StorageError:
    """ConfigurationError if somebody has to change a setting; StorageError if it may pass by itself."""
    reason, name = _reason(e)
    if reason is None:
        return StorageError(f"bucket {bucket}: {e}")
    return ConfigurationError(f"the storage refuses us ({name}, bucket {bucket!r}): {reason}")


def _reason(e: BotoCoreError | ClientError) -> tuple[str | None, str]:
    if isinstance(e, ClientError):
        answer = cast(Any, e).response  # boto3 has no types
        code, status = answer["Error"].get("Code", ""), answer["ResponseMetadata"]["HTTPStatusCode"]
        return _CODES.get(code) or _STATUSES.get(status), code or str(status)
    name = type(e).__name__
    if isinstance(e, SSLError):
        return f"IVMIX_S3_CA_FILE must hold the server's authority and IVMIX_S3_ENDPOINT_URL its name: {e}", name
    if isinstance(e, NoCredentialsError | PartialCredentials):
        return f"there are no credentials; set {_KEYS}", name
    if isinstance(e, ParamValidationError):
        return "IVMIX_S3_BUCKET is no name for a bucket", name
    return None, name
