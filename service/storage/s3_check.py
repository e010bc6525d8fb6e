"""Checks with a test object that the bucket can be used as the settings say."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from service.errors import ConfigurationError
from service.storage.s3_errors import explain_s3_error

log = logging.getLogger("ivmix.storage")

CHECK_KEY = "ivmix-check"  # written and deleted when a process starts
# Argument of S3 -> setting, in the order in which they are left out.
_SETTINGS = {
    "StorageClass": "IVMIX_S3_STORAGE_CLASS",
    "SSEKMSKeyId": "IVMIX_S3_KMS_KEY_ID",
    "ServerSideEncryption": "IVMIX_S3_ENCRYPTION",
}


def check_bucket(client: Any, bucket: str, prefix: str, arguments: Mapping[str, str]) -> None:
    """Write, list and delete an object.

    Args:
        client: of boto3, which has no types.
        arguments: of requests that write, such as the encryption.

    Raises:
        ConfigurationError: the storage rejects the request, or ignores the encryption; names the setting to correct.
        StorageError: the storage is unreachable, which may be temporary.
    """
    key = prefix + CHECK_KEY
    try:
        _put(client, bucket, key, arguments)
        try:
            client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
            stored: Mapping[str, Any] = client.head_object(Bucket=bucket, Key=key) if arguments else {}
        finally:
            client.delete_object(Bucket=bucket, Key=key)
    except (BotoCoreError, ClientError) as e:
        uses_kms = arguments.get("ServerSideEncryption", "").startswith("aws:kms")
        raise explain_s3_error(e, bucket=bucket, endpoint_url=client.meta.endpoint_url, uses_kms=uses_kms) from e
    _require_applied(stored, arguments)


def _put(client: Any, bucket: str, key: str, arguments: Mapping[str, str]) -> None:
    """Raises ConfigurationError if the server stores the object without one of the arguments: error codes of servers
    differ too much to tell, and some say that the failure is temporary."""
    try:
        client.put_object(Bucket=bucket, Key=key, Body=b"ivmix", **arguments)
    except ClientError as e:
        left = dict(arguments)
        for name, setting in _SETTINGS.items():
            if (value := left.pop(name, None)) is not None and _is_stored(client, bucket, key, left):
                raise ConfigurationError(
                    f"{setting}={value}: the server rejects it ({e}), and stores objects without it; correct it or "
                    "unset it"
                ) from e
        raise


def _is_stored(client: Any, bucket: str, key: str, arguments: Mapping[str, str]) -> bool:
    try:
        client.put_object(Bucket=bucket, Key=key, Body=b"ivmix", **arguments)
        client.delete_object(Bucket=bucket, Key=key)
    except (BotoCoreError, ClientError):
        return False
    return True


def _require_applied(stored: Mapping[str, Any], wanted: Mapping[str, str]) -> None:
    """Some servers accept these headers and ignore them."""
    encryption, storage_class = wanted.get("ServerSideEncryption"), wanted.get("StorageClass")
    found = stored.get("ServerSideEncryption")
    if encryption and found != encryption:
        raise ConfigurationError(
            f"IVMIX_S3_ENCRYPTION={encryption}: the server stores objects with {found or 'no encryption'} instead; "
            "unset it, or use a server that encrypts"
        )
    if storage_class and stored.get("StorageClass", "STANDARD") != storage_class:
        log.warning("IVMIX_S3_STORAGE_CLASS=%s: the server ignores it; unset it", storage_class)
