"""Stores objects in an S3 bucket. Uploads are verified afterwards: not every server checks what it receives."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boto3.exceptions import Boto3Error, S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError

from service.errors import StorageError
from service.storage.base import StoredObject, started, verify_sha256
from service.storage.etag import expected_etag
from service.storage.object_keys import FOLDERS, VIDEOS, is_lasting
from service.storage.s3_check import check_bucket

CHUNK_BYTES = 256 * 1024
PART_BYTES = 16 * 1024 * 1024  # files of this size or more are uploaded in parts of it; S3 requires at least 5 MiB
CONCURRENT_PARTS = 4


@dataclass(frozen=True)
class ObjectOptions:
    """What S3 does with the objects, in the words of its API.

    `storage_class` is for lasting objects only: classes for rare access bill even a deleted object for 30 days or more,
    and checkpoints are replaced every few seconds.
    """

    encryption: str | None = None
    kms_key_id: str | None = None
    storage_class: str | None = None

    def arguments(self, key: str) -> dict[str, str]:
        """Further arguments of a request that writes this key."""
        found = {
            "ServerSideEncryption": self.encryption,
            "SSEKMSKeyId": self.kms_key_id,
            "StorageClass": self.storage_class if is_lasting(key) else None,
        }
        return {name: value for name, value in found.items() if value}


class S3Storage:
    def __init__(
        self,
        client: Any,  # boto3 has no types
        *,
        bucket: str,
        presign_seconds: int,
        public_client: Any | None = None,
        part_bytes: int = PART_BYTES,
        prefix: str = "",
        options: ObjectOptions = ObjectOptions(),  # immutable
    ) -> None:
        """
        Args:
            presign_seconds: Lifetime of download URLs. 0: no URLs, the API serves the bytes.
            public_client: Signs download URLs, for clients that reach the server under another host name.
            part_bytes: Size from which, and of which, uploads are split into parts.
            prefix: Begin of every key in the bucket; ends with a slash. Callers, records and manifests do not see it.
        """
        self._client = client
        self._public_client = public_client or client
        self._bucket = bucket
        self._presign_seconds = presign_seconds
        self._part_bytes = part_bytes
        self._prefix, self._options = prefix, options
        self._transfer: Any = TransferConfig(
            multipart_threshold=part_bytes, multipart_chunksize=part_bytes, max_concurrency=CONCURRENT_PARTS
        )

    def put(self, path: Path, *, key: str, media_type: str, sha256: str) -> None:
        verify_sha256(path, sha256)
        arguments = {"ContentType": media_type, "Metadata": {"sha256": sha256}, **self._options.arguments(key)}
        with _storage_errors(key):  # an upload in parts that fails is aborted by boto3
            self._client.upload_file(
                str(path), self._bucket, self._prefix + key, ExtraArgs=arguments, Config=self._transfer
            )
            problem = self._upload_problem(path, key, sha256)
            if problem:
                self.delete(key)  # a missing object is better than a wrong one
                raise StorageError(f"{key}: {problem}")

    def open(self, key: str, start: int = 0, end: int | None = None) -> Generator[bytes]:
        if end is not None and end <= start:
            return (chunk for chunk in (b"",))
        byte_range = f"bytes={start}-{'' if end is None else end - 1}"
        options = {"Range": byte_range} if start or end is not None else {}
        with _storage_errors(key):
            response = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key, **options)

        def chunks() -> Generator[bytes]:
            with _storage_errors(key), closing(response["Body"]) as body:
                yield b""  # see `started`
                yield from body.iter_chunks(CHUNK_BYTES)

        return started(chunks())

    def size(self, key: str) -> int | None:
        head = self._head(key)
        return None if head is None else int(head["ContentLength"])

    def matches(self, key: str, *, size_bytes: int, sha256: str) -> bool:
        head = self._head(key)
        return head is not None and (int(head["ContentLength"]), head["Metadata"].get("sha256")) == (size_bytes, sha256)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + prefix
        )
        with _storage_errors(prefix):
            for page in pages:
                for item in page.get("Contents", ()):
                    key = item["Key"].removeprefix(self._prefix)
                    yield StoredObject(key, int(item["Size"]), item["LastModified"].timestamp())

    def url(self, key: str, *, filename: str, media_type: str) -> str | None:
        if not self._presign_seconds:
            return None
        with _storage_errors(key):
            return self._public_client.generate_presigned_url(
                "get_object",
                Params={
                    "Bucket": self._bucket,
                    "Key": self._prefix + key,
                    "ResponseContentType": media_type,
                    "ResponseContentDisposition": f'inline; filename="{filename}"',
                },
                ExpiresIn=self._presign_seconds,
            )

    def delete(self, key: str) -> None:
        with _storage_errors(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    def clean(self, *, older_than_s: float) -> int:
        """Abort our own unfinished multipart uploads: they are not listed, but they use space."""
        return sum(self._abort_uploads(self._prefix + folder, time.time() - older_than_s) for folder in FOLDERS)

    def _abort_uploads(self, prefix: str, oldest: float) -> int:
        aborted = 0
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=prefix)
        with _storage_errors(prefix):
            for upload in (upload for page in pages for upload in page.get("Uploads", ())):
                # Not every server filters by prefix, and the bucket may be shared.
                if upload["Key"].startswith(prefix) and upload["Initiated"].timestamp() <= oldest:
                    self._client.abort_multipart_upload(
                        Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                    aborted += 1
        return aborted

    def check(self) -> None:
        check_bucket(self._client, self._bucket, self._prefix, self._options.arguments(VIDEOS))

    def _upload_problem(self, path: Path, key: str, sha256: str) -> str | None:
        """What is wrong with the stored object, or None."""
        head, size = self._head(key), path.stat().st_size
        if head is None:
            return "the object is missing after the upload"
        if int(head["ContentLength"]) != size:
            return f"only {head['ContentLength']} of {size} bytes were stored"
        if head["Metadata"].get("sha256") != sha256:
            return "the stored object has other metadata: it was overwritten, or the server drops metadata"
        # Some servers (moto, rclone) check neither CRC nor signature, but their ETag reveals corrupt bytes.
        etag = head["ETag"].strip('"')
        if etag != expected_etag(path, part_bytes=self._part_bytes) and self._sha256(key) != sha256:
            return "the stored bytes differ from those sent"
        return None

    def _head(self, key: str) -> dict[str, Any] | None:
        with _storage_errors(key):
            try:
                return self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
            except ClientError as e:
                response: Any = e.response  # boto3 has no types
                if response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return None
                raise

    def _sha256(self, key: str) -> str:
        digest = hashlib.sha256()
        for chunk in self.open(key):
            digest.update(chunk)
        return digest.hexdigest()


@contextmanager
def _storage_errors(key: str) -> Generator[None]:
    try:
        yield
    except (OSError, Boto3Error, BotoCoreError, ClientError) as e:
        reason = (
            e.__context__ if isinstance(e, S3UploadFailedError) else None
        )  # its own text only repeats both file names
        raise StorageError(f"{key}: {reason or e}") from e
