"""An HTTP server with the part of the Hugging Face Hub API that fetching a model needs."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """Repositories by name and commit; `head` is the newest commit of each. Weights are in large-file storage."""

    url: str = ""
    commits: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    head: dict[str, str] = field(default_factory=dict)
    answers_with: str | None = None  # answer every request with this commit
    overrides: dict[str, object] = field(default_factory=dict)  # override keys of the listing
    file_overrides: dict[str, dict[str, object]] = field(default_factory=dict)  # the same for a file in it
    body_overrides: dict[str, bytes] = field(default_factory=dict)  # content sent instead, without its length
    redirect_to: str | None = None  # send every download there
    authorizations: list[str | None] = field(default_factory=list)  # of downloads
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range
    hold_after: dict[str, int] = field(default_factory=dict)  # file: stop sending after this many bytes
    release: threading.Event = field(default_factory=threading.Event)

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        content = b"".join(name.encode() + data for name, data in sorted(files.items()))
        revision = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        self.commits[repo, revision], self.head[repo] = files, revision
        return revision

    def commit_folder(self, repo: str, folder: Path) -> str:
        files = (file for file in folder.rglob("*") if file.is_file())
        return self.commit(repo, {file.relative_to(folder).as_posix(): file.read_bytes() for file in files})

    def whole_files(self) -> set[str]:
        """Repository and name of each file that was asked for from its beginning to its end."""
        asked = {path for path, sent in self.downloads() if sent is None}
        return {re.sub(r"^/(.+)/resolve/[^/]+/", r"\1/", path) for path in asked}

    def downloads(self) -> list[tuple[str, str | None]]:
        return [(path, sent) for path, sent in self.requests if "/resolve/" in path]


@contextmanager
def serve_hub() -> Iterator[Hub]:
    hub = Hub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients read as much of a file as they need
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None: ...

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((path, self.headers.get("Range")))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(*found.groups())
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*found.groups())
        else:
            self._refuse("EntryNotFound")

    def _info(self, repo: str, revision: str | None) -> None:
        if repo not in self.hub.head:
            return self._refuse("RepoNotFound")
        revision = self.hub.head[repo] if revision in (None, "main") else revision
        revision = self.hub.answers_with or revision
        if (repo, revision) not in self.hub.commits:
            return self._refuse("RevisionNotFound")
        files = self.hub.commits[repo, str(revision)]
        siblings = [_sibling(name, data) for name, data in files.items()]
        for sibling in siblings:
            sibling |= self.hub.file_overrides.get(str(sibling["rfilename"]), {})
        listing = {"id": repo, "sha": revision, "siblings": siblings} | self.hub.overrides
        return self._answer(200, json.dumps(listing).encode())

    def _file(self, repo: str, revision: str, name: str) -> None:
        data = self.hub.commits.get((repo, revision), {}).get(name)
        self.hub.authorizations.append(self.headers.get("Authorization"))
        if self.hub.redirect_to is not None:
            return self._answer(302, b"", {"Location": f"{self.hub.redirect_to}{self.path}"})
        if (body := self.hub.body_overrides.get(name)) is not None:
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True
            return None
        if data is None:
            return self._refuse("EntryNotFound")
        found = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(found[1]) if found else 0
        size, data = len(data), data[: int(found[2]) + 1] if found and found[2] else data
        self.send_response(206 if found else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if found:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{size}")
        self.end_headers()
        if (bytes_sent := self.hub.hold_after.pop(name, None)) is not None:
            self.wfile.write(data[start:bytes_sent])
            self.wfile.flush()
            self.hub.release.wait(120)
            self.close_connection = True
            return None
        self.wfile.write(data[start:])
        return None

    def _refuse(self, code: str) -> None:
        self._answer(404, b"{}", {"X-Error-Code": code})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _sibling(name: str, data: bytes) -> dict[str, object]:
    plain = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data, usedforsecurity=False).hexdigest()}
    if not name.endswith((".safetensors", ".bin")):
        return plain
    return {**plain, "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}}
