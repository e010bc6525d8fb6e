"""GET /: the page of this server, static files that are read, hashed and compressed once. Its API calls need a key."""

from __future__ import annotations

import gzip
import hashlib
import html
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from service.api.sessions import COOKIE
from service.errors import StorageError
from service.settings import Settings
from service.wiring import Services

STATIC = Path(__file__).resolve().parents[2] / "page" / "static"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
# The file names stay the same from version to version: browsers ask each time, and get 304 while nothing has changed.
_CACHE = "no-cache"


@dataclass(frozen=True)
class StaticFile:
    """One file of the page, plain and compressed."""

    media_type: str
    content: bytes
    compressed: bytes
    etag: str

    @classmethod
    def of(cls, content: bytes, ending: str) -> StaticFile:
        digest = hashlib.sha256(content).hexdigest()[:32]
        return cls(MEDIA_TYPES[ending], content, gzip.compress(content, 9, mtime=0), f'W/"{digest}"')

    def response(self, request: Request, **headers: str) -> Response:
        """The file, or 304 if the browser has it."""
        headers = {"etag": self.etag, "cache-control": _CACHE, "vary": "accept-encoding"} | headers
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
            return Response(self.compressed, media_type=self.media_type, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


@cache
def static_files() -> dict[str, StaticFile]:
    """All files by their path below the folder."""
    paths = (path for path in sorted(STATIC.rglob("*")) if path.suffix in MEDIA_TYPES)
    return {str(path.relative_to(STATIC)): StaticFile.of(path.read_bytes(), path.suffix) for path in paths}


def add_page(app: FastAPI, services: Services) -> None:
    """Adds the routes, unless IVMIX_PAGE turns the page off."""
    if not services.settings.page:
        return
    files = static_files()
    index = _index(services.settings)
    signed_out = _index(services.settings, '<html lang="en" data-signed-out>')

    async def show_page(request: Request) -> Response:
        policy = await run_in_threadpool(content_policy, services)
        shown = signed_out if services.settings.auth == "keys" and _has_no_session(request) else index
        return shown.response(request, **{"content-security-policy": policy, "vary": "accept-encoding, cookie"})

    async def show_file(request: Request, file: str) -> Response:
        if file not in files or file == "index.html":
            raise HTTPException(404)
        return files[file].response(request)

    async def show_embed(request: Request) -> Response:
        # A script that pages of other origins load; with keys or not, it holds nothing secret.
        return files["embed.js"].response(request, **{"cross-origin-resource-policy": "cross-origin"})

    app.add_api_route("/", show_page, include_in_schema=False)
    app.add_api_route("/page/{file:path}", show_file, include_in_schema=False)
    app.add_api_route("/embed.js", show_embed, include_in_schema=False)


def content_policy(services: Services) -> str:
    """What the page may load: itself, videos from where their URLs point to, files that a person chooses (blob:)."""
    media = " ".join(["'self'", *_media_origins(services)])
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        f"img-src {media} blob:; media-src {media} blob:; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
    )


def _has_no_session(request: Request) -> bool:
    """Then the page asks for a key at once. Not if another site links here: browsers keep the cookie back then."""
    return COOKIE not in request.cookies and request.headers.get("sec-fetch-site") in ("none", "same-origin")


def _index(settings: Settings, html_tag: str = '<html lang="en">') -> StaticFile:
    """index.html with the prefix that browsers see, so that its URLs work with or without a last slash."""
    text = (STATIC / "index.html").read_text().replace('<html lang="en">', html_tag)
    base = html.escape(f"{settings.root_path}/", quote=True)
    return StaticFile.of(text.replace('<base href="/">', f'<base href="{base}">').encode(), ".html")


def _media_origins(services: Services) -> list[str]:
    """Those of the public URL and of the storage's presigned URLs, if there are any and it can sign at the moment."""
    presigned = None
    with suppress(StorageError):  # without credentials the page still shows everything else
        presigned = services.storage.url("origin", filename="origin", media_type="video/mp4")
    urls = [url for url in (services.settings.client_base_url, presigned) if url]
    return sorted({f"{parts.scheme}://{parts.netloc}" for parts in map(urlsplit, urls)})
