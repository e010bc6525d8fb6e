"""Stores finished videos as local files or S3 objects behind one protocol."""

from __future__ import annotations

from service.storage.base import StoredObject, VideoStorage, read, sha256_of
from service.storage.file import FileStorage
from service.storage.retry import StorageRetry
from service.storage.s3 import S3Storage

__all__ = ["FileStorage", "S3Storage", "StorageRetry", "StoredObject", "VideoStorage", "read", "sha256_of"]
