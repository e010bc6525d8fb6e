"""Recognises an S3 endpoint URL that contains the bucket, as consoles of S3 providers show it."""

from __future__ import annotations

from urllib.parse import urlsplit


def without_bucket(url: str | None, bucket: str) -> str | None:
    """
    The endpoint URL without the bucket, or None if it does not contain it: `https://host/bucket` and
    `https://bucket.host`. Some servers do have such names (a bucket `s3` at `s3.example.com`), so that this explains a
    failure but does not prove one.
    """
    parts = urlsplit(url or "")
    host, path = parts.netloc.rpartition("@")[2], parts.path.rstrip("/")
    in_host, in_path = host.lower().startswith(f"{bucket}."), is_bucket_in_path(url, bucket)
    if not in_host and not in_path:
        return None
    return f"{parts.scheme}://{host[len(bucket) + 1 :] if in_host else host}{path.removesuffix(f'/{bucket}')}"


def is_bucket_in_path(url: str | None, bucket: str) -> bool:
    return urlsplit(url or "").path.rstrip("/").endswith(f"/{bucket}")
