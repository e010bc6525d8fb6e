"""Finished videos as files or as S3 objects, behind one protocol. Knows keys and bytes; nothing of jobs.

protocol   what every storage does
files      a folder of this machine
objects    a bucket of an S3 server
refusals   what an S3 server's refusal means for the settings
etag       what an S3 server should call a file that arrived whole
patience   how long a storage that is away is waited for
"""

from __future__ import annotations

from service.storage.base import StoredObject, VideoStorage, read, sha256_of
from service.storage.file import FileStorage
from service.storage.retry import StorageRetry
from service.storage.s3 import S3Storage

__all__ = ["FileStorage", "S3Storage", "StorageRetry", "StoredObject", "VideoStorage", "read", "sha256_of"]
