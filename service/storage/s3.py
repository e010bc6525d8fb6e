"""A storage that is a bucket of an S3 server. What was put is looked at: an answer alone proves nothing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from boto3.exceptions import Boto3Error, S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError

from service.errors import StorageError
from service.storage.base import StoredObject, verify_sha256
from service.storage.etag import expected_etag
from service.storage.s3_errors import explain

CHUNK_BYTES = 256 * 1024
PART_BYTES = 16 * 1024 * 1024  # from this size on a file is sent in parts of it; S3 wants 5 MiB at least
PROBE = "ivmix-check"  # written and deleted when a process starts


class S3Storage:
    def __init__(
        self,
        client: Any,  # boto3 has no types
        *,
        bucket: str,
        presign_seconds: int,
        public_client: Any | None = None,
        part_bytes: int = PART_BYTES,
    ) -> None:
        """`public_client` signs addresses for clients who reach the server by another name; 0 seconds: none at all."""
        self._client = client
        self._public_client = public_client or client
        self._bucket = bucket
        self._presign_seconds = presign_seconds
        self._part_bytes = part_bytes
        self._transfer: Any = TransferConfig(
            multipart_threshold=part_bytes, multipart_chunksize=part_bytes, max_concurrency=4
        )

    def put(self, path: Path, *, key: str, media_type: str, sha256: str) -> None:
        verify_sha256(path, sha256)
        about = {"ContentType": media_type, "Metadata": {"sha256": sha256}}
        with _as_storage_error(key):
            self._client.upload_file(str(path), self._bucket, key, ExtraArgs=about, Config=self._transfer)
            fault = self._fault(path, key, sha256)
            if fault:
                self.delete(key)  # nothing rather than something wrong
                raise StorageError(f"{key}: {fault}")

    def open(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        if end is not None and end <= start:
            return iter(())
        part = f"bytes={start}-{'' if end is None else end - 1}"
        asked = {"Range": part} if start or end is not None else {}
        with _as_storage_error(key):
            answer = self._client.get_object(Bucket=self._bucket, Key=key, **asked)

        def pieces() -> Iterator[bytes]:
            with _as_storage_error(key), closing(answer["Body"]) as body:
                yield from body.iter_chunks(CHUNK_BYTES)

        return pieces()

    def size(self, key: str) -> int | None:
        head = self._head(key)
        return None if head is None else int(head["ContentLength"])

    def matches(self, key: str, *, size_bytes: int, sha256: str) -> bool:
        head = self._head(key)
        return head is not None and (int(head["ContentLength"]), head["Metadata"].get("sha256")) == (size_bytes, sha256)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        with _as_storage_error(prefix):
            for page in pages:
                for item in page.get("Contents", ()):
                    yield StoredObject(item["Key"], int(item["Size"]), item["LastModified"].timestamp())

    def url(self, key: str, *, filename: str, media_type: str) -> str | None:
        if not self._presign_seconds:
            return None
        with _as_storage_error(key):
            return self._public_client.generate_presigned_url(
                "get_object",
                Params={
                    "Bucket": self._bucket,
                    "Key": key,
                    "ResponseContentType": media_type,
                    "ResponseContentDisposition": f'inline; filename="{filename}"',
                },
                ExpiresIn=self._presign_seconds,
            )

    def delete(self, key: str) -> None:
        with _as_storage_error(key):
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def clean(self, *, older_than_s: float) -> int:
        """Uploads in parts that were never finished: invisible, but they cost space."""
        removed, oldest = 0, time.time() - older_than_s
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket)
        with _as_storage_error(self._bucket):
            for upload in (upload for page in pages for upload in page.get("Uploads", ())):
                if upload["Initiated"].timestamp() <= oldest:
                    self._client.abort_multipart_upload(
                        Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                    removed += 1
        return removed

    def check(self) -> None:
        try:
            self._client.put_object(Bucket=self._bucket, Key=PROBE, Body=b"ivmix")
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=PROBE, MaxKeys=1)
            self._client.delete_object(Bucket=self._bucket, Key=PROBE)
        except (BotoCoreError, ClientError) as e:
            raise explain(e, bucket=self._bucket) from e

    def _fault(self, path: Path, key: str, sha256: str) -> str | None:
        """What is wrong with what arrived."""
        head, size = self._head(key), path.stat().st_size
        if head is None:
            return "nothing arrived"
        if int(head["ContentLength"]) != size:
            return f"{head['ContentLength']} bytes arrived of {size}"
        if head["Metadata"].get("sha256") != sha256:
            return "something else arrived, or its metadata got lost"
        # Not every server checks what it gets (moto, rclone: neither CRC nor signature), but it does tell what it has.
        etag = head["ETag"].strip('"')
        if etag != expected_etag(path, part_bytes=self._part_bytes) and self._sha256(key) != sha256:
            return "other bytes arrived than were sent"
        return None

    def _head(self, key: str) -> dict[str, Any] | None:
        try:
            return self._client.head_object(Bucket=self._bucket, Key=key)
        except ClientError as e:
            response: Any = e.response  # boto3 has no types
            if response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise StorageError(f"{key}: {e}") from e
        except BotoCoreError as e:
            raise StorageError(f"{key}: {e}") from e

    def _sha256(self, key: str) -> str:
        digest = hashlib.sha256()
        for piece in self.open(key):
            digest.update(piece)
        return digest.hexdigest()


@contextmanager
def _as_storage_error(key: str) -> Generator[None]:
    try:
        yield
    except (OSError, Boto3Error, BotoCoreError, ClientError) as e:
        reason = e.__context__ if isinstance(e, S3UploadFailedError) else None  # its own text is two long names
        raise StorageError(f"{key}: {reason or e}") from e
