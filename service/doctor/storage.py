"""Checks of the storage: everything that the service does with an object, on a small one that is deleted again."""

from __future__ import annotations

import hashlib
import secrets
import ssl
import tempfile
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx2

from service.doctor.clocks import clock_finding
from service.doctor.finding import Finding, Findings, ok, problem, warning
from service.errors import ServiceError, StorageError
from service.settings import Settings
from service.storage import VideoStorage, read

CONTENT = b"ivmix doctor: written, read and deleted again"
URL_TIMEOUT_S = 5.0


def check_storage(storage: VideoStorage, settings: Settings, now: float) -> Findings:
    """
    Args:
        now: unix time of this machine.
    """
    bucket = f"bucket {settings.s3_bucket}{f', prefix {settings.s3_prefix}' if settings.s3_prefix else ''}"
    name = bucket if settings.storage == "s3" else f"files in {settings.data_dir}/storage"
    try:
        storage.check()
    except ServiceError as e:
        advice = "start it, or correct IVMIX_S3_ENDPOINT_URL" if isinstance(e, StorageError) else ""
        yield problem("storage", e.message, advice)
        return
    key = f"doctor/{secrets.token_hex(8)}"
    try:
        yield from _use(storage, key, name, settings, now)
    except ServiceError as e:
        yield problem("storage", e.message, "correct the permissions of the storage")
    finally:
        with suppress(ServiceError):
            storage.delete(key)


def _use(storage: VideoStorage, key: str, name: str, settings: Settings, now: float) -> Findings:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "object"
        file.write_bytes(CONTENT)
        storage.put(file, key=key, media_type="text/plain", sha256=sha256)
    wrong = [
        text
        for text, is_right in (
            ("an object is not what was written", read(storage, key) == CONTENT),
            ("a range of an object is wrong", b"".join(storage.open(key, 6, 12)) == CONTENT[6:12]),
            ("the checksum in the metadata is lost", storage.matches(key, size_bytes=len(CONTENT), sha256=sha256)),
            ("an object is not listed", [found.key for found in storage.list(key)] == [key]),
        )
        if not is_right
    ]
    url = storage.url(key, filename="doctor.txt", media_type="text/plain")
    if url is not None:
        yield from _check_url(url, settings, now)
    storage.delete(key)
    if storage.size(key) is not None:
        wrong.append("a deleted object is still there")
    if wrong:
        yield problem("storage", f"{name}: {'; '.join(wrong)}", "use another server, or correct its configuration")
    else:
        yield ok("storage", f"{name}: write, read, range, list and delete work")


def _check_url(url: str, settings: Settings, now: float) -> Findings:
    """Download through the URL that clients get."""
    public = settings.s3_public_endpoint_url
    variable = "IVMIX_S3_PUBLIC_ENDPOINT_URL" if public else "IVMIX_S3_ENDPOINT_URL"
    try:
        reply = httpx2.get(url, timeout=URL_TIMEOUT_S, headers={"range": "bytes=6-11"}, verify=_tls(settings))
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as e:
        message = f"the address in download URLs cannot be reached from here: {type(e).__name__}"
        advice = f"correct {variable} if clients cannot reach it either"
        yield warning("download URL", message, advice) if public else problem("download URL", message, advice)
        return
    yield _judge(reply, variable)
    if date := reply.headers.get("date"):
        with suppress(ValueError, TypeError):
            yield clock_finding("the storage's clock", parsedate_to_datetime(date).timestamp() - now, precision_s=1.0)


def _judge(reply: httpx2.Response, variable: str) -> Finding:
    if reply.status_code not in (200, 206):
        message = f"a download URL is answered with {reply.status_code}, so clients cannot download videos"
        return problem("download URL", message, f"correct {variable}; IVMIX_PRESIGN_SECONDS=0 serves them from the API")
    if reply.content not in (CONTENT, CONTENT[6:12]):
        return problem("download URL", f"a download URL returns something else: {variable} is another server")
    if reply.status_code == 200:
        return warning("download URL", "the server ignores ranges", "players cannot seek in videos")
    return ok("download URL", "signed URLs work, with ranges")


def _tls(settings: Settings) -> ssl.SSLContext | bool:
    return ssl.create_default_context(cafile=str(settings.s3_ca_file)) if settings.s3_ca_file else True
