"""Stores finished videos as local files or S3 objects behind one protocol.

`service.storage.s3` is imported by name: it loads boto3, which processes with local files do not need.
"""

from __future__ import annotations

from service.storage.base import StoredObject, VideoStorage, read, sha256_of
from service.storage.file import FileStorage
from service.storage.retry import StorageRetry

__all__ = ["FileStorage", "StorageRetry", "StoredObject", "VideoStorage", "read", "sha256_of"]
