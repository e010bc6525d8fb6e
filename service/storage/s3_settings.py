"""Opens the S3 storage that the settings describe, and refuses values that cannot be right."""

from __future__ import annotations

import logging
import re
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from service.errors import ConfigurationError
from service.storage.s3 import ObjectOptions, S3Storage
from service.storage.s3_endpoint import is_bucket_in_path, without_bucket
from service.store_settings import StoreSettings

log = logging.getLogger("ivmix.storage")

MIB = 2**20


def open_s3_storage(settings: StoreSettings) -> S3Storage:
    """Without connecting yet. Raises ConfigurationError."""
    bucket = _bucket(settings)
    for name in ("s3_access_key_id", "s3_secret_access_key"):
        _check_key(name, settings)
    public = settings.s3_public_endpoint_url
    for name, url in (("S3_ENDPOINT_URL", settings.s3_endpoint_url), ("S3_PUBLIC_ENDPOINT_URL", public)):
        _check_url(f"IVMIX_{name}", url, bucket)
    _check_public_url(public, bucket)
    return S3Storage(
        _s3_client(settings, settings.s3_endpoint_url),
        bucket=bucket,
        presign_seconds=settings.presign_seconds,
        public_client=_s3_client(settings, public) if public else None,
        part_bytes=settings.s3_part_mb * MIB,
        prefix=settings.s3_prefix,
        options=ObjectOptions(settings.s3_encryption, settings.s3_kms_key_id, settings.s3_storage_class),
    )


def _bucket(settings: StoreSettings) -> str:
    """Raises ConfigurationError for what consoles and other tools show instead of the name."""
    bucket = settings.s3_bucket
    assert bucket is not None  # StoreSettings rejects storage=s3 without it
    name, _, rest = re.sub(r"^(s3://|arn:aws[\w-]*:s3:::)", "", bucket).partition("/")
    if name == bucket:
        return bucket
    prefix = f" and IVMIX_S3_PREFIX={rest.strip('/')}" if rest.strip("/") and "://" not in name + rest else ""
    way_out = f"set IVMIX_S3_BUCKET={name}{prefix}" if re.fullmatch(r"[a-z0-9.-]+", name) else "write its name only"
    raise ConfigurationError(f"IVMIX_S3_BUCKET={bucket} is not the name of a bucket; {way_out}")


def _check_key(name: str, settings: StoreSettings) -> None:
    """A line break at the end is what `echo` puts into files of secrets; servers say that the secret is wrong."""
    value = getattr(settings, name)
    text = value.get_secret_value() if hasattr(value, "get_secret_value") else value
    if text is not None and re.search(r"\s", text):
        raise ConfigurationError(f"IVMIX_{name.upper()} contains a space or line break; remove it")


def _check_url(name: str, url: str | None, bucket: str) -> None:
    if url is None:
        return
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.username is not None:
        raise ConfigurationError(f"{name} contains a user; put the access key into IVMIX_S3_ACCESS_KEY_ID instead")
    if parts.scheme not in ("http", "https"):
        raise ConfigurationError(f"{name}={url} does not begin with https:// or http://; correct it")
    if parts.query or parts.fragment:
        raise ConfigurationError(f"{name} goes on after its path; remove everything from ? or # on")
    if re.search(r"(^|\.)console\.aws\.amazon\.com$", host):
        raise ConfigurationError(f"{name}={url} is a console for people; set the URL of the S3 API")
    if re.fullmatch(rf"{re.escape(bucket)}\.s3[.-].*amazonaws\.com(\.cn)?", host):
        raise ConfigurationError(_has_bucket(name, bucket, without_bucket(url, bucket)))


def _has_bucket(name: str, bucket: str, shorter: str | None) -> str:
    return f"{name} contains the bucket, which only IVMIX_S3_BUCKET={bucket} should name; set {name}={shorter}"


def _check_public_url(public: str | None, bucket: str) -> None:
    """Only clients would notice the bucket in it. Of the other URL the server's answer shows whether it is wrong."""
    shorter = without_bucket(public, bucket)
    if shorter is None:
        return
    problem = _has_bucket("IVMIX_S3_PUBLIC_ENDPOINT_URL", bucket, shorter)
    if is_bucket_in_path(public, bucket):
        raise ConfigurationError(problem)
    log.warning("%s, unless the host is really called so", problem)  # s3.example.com with a bucket `s3`


def _s3_client(settings: StoreSettings, endpoint_url: str | None) -> Any:  # boto3 has no types
    """Raises ConfigurationError for an invalid URL."""
    secret = settings.s3_secret_access_key
    try:
        return boto3.client(  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            "s3",
            endpoint_url=endpoint_url,
            verify=str(settings.s3_ca_file) if settings.s3_ca_file else None,
            region_name=settings.s3_region or "us-east-1",
            aws_access_key_id=settings.s3_access_key_id,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            config=Config(
                signature_version="s3v4",
                # Sign the payload, so that the server rejects corrupted bytes, over TLS as well.
                s3={"addressing_style": settings.s3_addressing_style, "payload_signing_enabled": True},
                # botocore >= 1.36 sends checksum trailers by default, which many servers reject (botocore#3277).
                request_checksum_calculation=settings.s3_checksum,
                response_checksum_validation=settings.s3_checksum,
                connect_timeout=3,
                read_timeout=settings.s3_timeout_s,
                retries={"mode": "standard", "total_max_attempts": 2},  # workers add StorageRetry
                tcp_keepalive=True,
            ),
        )
    except ValueError as e:
        raise ConfigurationError(f"IVMIX_S3_ENDPOINT_URL or IVMIX_S3_PUBLIC_ENDPOINT_URL: {e}") from e
